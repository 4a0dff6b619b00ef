"""The Triton server of the local stack: an installed one, or that of the pytriton wheel."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import shared
from heterotissue.stack.servers import Launch
from shared.computing import SPIN
from shared.errors import InputError

WHEEL = Path(sys.prefix) / "triton" / "pytriton" / "tritonserver"
"""Where `make install` unpacks the pytriton wheel."""


def plan_triton(
    folder: Path, repository: str, ports: tuple[int, int, int], environment: dict[str, str]
) -> Launch:
    """Return the command that starts a Triton server.

    Args:
        folder: receives the backends, if the server of the wheel is used.
        repository: folder or s3:// address of the model repository.
        ports: ports for HTTP, gRPC and metrics.
        environment: environment variables for the server.

    Raises:
        InputError: no Triton server is installed on this machine.
    """
    installed = shutil.which("tritonserver")
    program = Path(installed) if installed else WHEEL / "bin" / "tritonserver"
    if not program.is_file():
        raise InputError(
            "no tritonserver: run 'make install' (which unpacks the pytriton wheel), or start "
            "NVIDIA's container and set HTD_TRITON_URL"
        )
    command = [
        str(program), f"--model-repository={repository}", "--model-control-mode=explicit",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
        f"--http-port={ports[0]}", f"--grpc-port={ports[1]}", f"--metrics-port={ports[2]}",
        "--disable-auto-complete-config", "--exit-timeout-secs=30",
    ]  # fmt: skip
    packages = [str(Path(shared.__file__).parents[1]), sysconfig.get_path("purelib")]
    own = {"PYTHONPATH": os.pathsep.join(packages), **SPIN}
    if not installed:
        program.chmod(0o755)
        command.append(f"--backend-directory={_unpack(folder)}")
        libraries = [WHEEL.parents[1] / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        own |= {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
    return Launch(command, environment | own)


def _unpack(folder: Path) -> Path:
    """Copy the wheel's Python backend and the stub for this Python version into one folder."""
    backends = folder / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = WHEEL / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise InputError(f"the pytriton wheel has no backend for Python {version}")
    shutil.copytree(WHEEL / "backends" / "python", backends / "python", dirs_exist_ok=True)
    (backends / "python" / stub.name).unlink(missing_ok=True)
    shutil.copy(stub, backends / "python" / stub.name)
    (backends / "python" / stub.name).chmod(0o755)
    return backends
