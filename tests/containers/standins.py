"""Base images for machines that reach no registry of images: built under the same names.

Needs root and debootstrap. A stand-in carries the label `org.heterotissue.standin`, so that
nobody takes it for the real image. `python -m tests.containers.standins` makes what is missing.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEBIAN = "debian:bookworm-slim"
TORCH, TORCHVISION = "2.13.0", "0.28.0"
"""Of the CPU wheel that `pip download torch` finds where PyTorch's own index is out of reach."""
LABEL = "org.heterotissue.standin=1"
INDEX_PORT = 31415
"""Always the same: the address is an argument of the builds, which are cached by it."""


def docker(*arguments: str, check: bool = True) -> str:
    """Run the docker client and return what it prints."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, env=os.environ | BUILDKIT
    )
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


BUILDKIT = {"DOCKER_BUILDKIT": "1"}


def trouble_with_builder() -> str | None:
    """Say why this client cannot build, or None."""
    version = docker("version", "--format", "{{.Client.Version}}", check=False)
    if int(version.split(".")[0]) < 23 or docker("buildx", "version", check=False):
        return None
    return (
        f"docker {version} builds by its plugin buildx, which is not installed: install it, "
        "or put a client before 23, which brings BuildKit itself, first in PATH"
    )


def base_images() -> dict[str, str]:
    """Base images by the name of their stand-in, as Dockerfile and compose file name them."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    return {
        "python": re.findall(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.M)[0],
        "triton": re.findall(r"^ARG TRITON_IMAGE=(\S+)", dockerfile, re.M)[0],
        "redis": re.findall(r"\$\{REDIS_IMAGE:-([^}]+)\}", compose)[0],
        "silo": re.findall(r"\$\{S3_IMAGE:-([^}]+)\}", compose)[0],
    }


def present(image: str) -> bool:
    """Whether the engine has the image, or can pull it."""
    return bool(docker("images", "-q", image)) or bool(
        docker("pull", "--quiet", image, check=False)
    )


def ensure_base_images() -> dict[str, str]:
    """Pull the base images, or build stand-ins; return the build arguments that PyTorch needs."""
    images = base_images()
    missing = [name for name, image in images.items() if not present(image)]
    if missing and not present(DEBIAN):
        _import_debian()
    standin = "python" in missing or LABEL in docker(
        "inspect", "--format", "{{json .Config.Labels}}", images["python"], check=False
    ).replace('":"', "=")
    arguments = {"TORCH_VERSION": TORCH, "TORCHVISION_VERSION": TORCHVISION} if standin else {}
    for name in sorted(missing):  # python comes first
        with torch_index() as url:
            extra = {"PYTHON_IMAGE": images["python"], "TORCH_INDEX": url} | arguments
            build(images[name], HERE / "standins" / name, extra, label=LABEL)
    return arguments


def build(
    image: str, context: Path, arguments: dict[str, str], *, target: str = "", label: str = ""
) -> None:
    """Build an image; its build may use this machine's network."""
    command = ["build", "--network", "host", "--tag", image]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += ["--target", target] if target else []
    command += ["--label", label] if label else []
    docker(*command, str(context))


def _import_debian() -> None:
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "root"
        subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=ca-certificates",
                "bookworm",
                str(tree),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        trusted = Path("etc/ssl/certs/ca-certificates.crt")  # this machine's, for its mirrors
        (tree / trusted).write_bytes((Path("/") / trusted).read_bytes())
        clean = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
        (tree / "etc/apt/apt.conf.d/docker-clean").write_text(clean)
        tar = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", DEBIAN], stdin=tar.stdout, check=True)
        if tar.wait():
            raise RuntimeError(f"tar of {tree} failed")


@contextmanager
def torch_index() -> Iterator[str]:
    """Serve PyTorch for CPUs as PyTorch's own index does; the address is on this machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package, version in (("torch", TORCH), ("torchvision", TORCHVISION)):
            target = folder / package
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--no-deps",
                 f"{package}=={version}", "--dest", str(target)],
                check=True,
            )  # fmt: skip
        _without_extension(next((folder / "torchvision").glob("*.whl")))
        handler = functools.partial(_Quiet, directory=name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", INDEX_PORT), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{INDEX_PORT}"
        finally:
            server.shutdown()
            server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _without_extension(wheel: Path) -> None:
    """Take the CUDA operators out of torchvision, which PyTorch for CPUs can't load."""
    whole = wheel.rename(wheel.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.startswith(("torchvision/_C", "torchvision.libs/")):
                continue
            if item.filename == "torchvision/_meta_registrations.py":
                data = re.sub(
                    rb'@torch\.library\.register_fake\("torchvision::q?nms"\)\n', b"", data
                )
            new.writestr(item, data)
    whole.unlink()


if __name__ == "__main__":
    sys.stdout.write(f"{ensure_base_images()}\n")
