// The gateway's API, as the pages call it.
export async function send(method, path, body, headers = {}) {
  const typed = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(path, {
    method,
    headers: { ...typed, ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => null);
  if (answer.ok) return found;
  const error = new Error(found?.detail ?? `the server answered ${answer.status}`);
  error.problem = found;
  throw error;
}

export function explain(error) {
  const remedy = error.problem?.remedy;
  return remedy ? `${error.message} (${remedy})` : error.message;
}
