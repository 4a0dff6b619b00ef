// The gateway's API, as the pages call it.
export async function ask(method, path, body, options = {}) {
  const typed = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(path, {
    ...options,
    method,
    headers: { ...typed, ...options.headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  const error = new Error(found?.detail ?? `the server answered ${answer.status}`);
  error.problem = found;
  throw error;
}

export async function send(method, path, body, headers = {}) {
  const answer = await ask(method, path, body, { headers });
  return answer.status === 204 ? null : answer.json();
}

// All items of a list that comes in pages.
export async function list(path) {
  const items = [];
  for (let query = "", page; query !== null; query = page.next && `&cursor=${encodeURIComponent(page.next)}`) {
    page = await send("GET", `${path}?limit=200${query}`);
    items.push(...page.items);
  }
  return items;
}

export function explain(error) {
  const remedy = error.problem?.remedy;
  return remedy ? `${error.message} (${remedy})` : error.message;
}
