"""Find the service that `MODULE:NAME` or `path/to/file.py:NAME` means."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from busmicro.cli.words import did_you_mean
from busmicro.errors import BusmicroError, SetupError
from busmicro.service import Service


class TargetError(SetupError):
    """There is no such service; `what`, `why` and `hint` tell more."""

    def __init__(self, what: str, *why: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        """What went wrong."""
        self.why = why
        """Why, one line each."""
        self.hint = hint
        """What to try next."""


def load(target: str) -> Service:
    """Import a module and return the service in it.

    The current folder is put first on the path; for a file, its own folder is added too.

    Args:
        target: `module:name`, `module` or `path/to/file.py:name`; the name is `service` if it is
            left out.

    Raises:
        TargetError: There is no such module, it cannot be imported, or has no such service.
    """
    where, _, name = target.partition(":")
    _first_on_path(Path.cwd())
    if where.endswith(".py") or os.sep in where:
        module = _from_file(Path(where))
    else:
        module = _from_module(where)
    return _pick(module, where, name or "service")


def _first_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name and (name == missing.name or name.startswith(f"{missing.name}.")):
            raise _no_module(name) from missing
        raise _broken(name, missing) from missing
    except Exception as failure:
        raise _broken(name, failure) from failure


def _no_module(name: str) -> TargetError:
    here = sorted(path.stem for path in Path.cwd().glob("*.py"))
    hint = did_you_mean(name, here) or (f"there are {', '.join(here[:10])}" if here else "")
    why = "it is neither installed nor in the current folder" + (f": {hint}" if hint else "")
    return TargetError(
        f"there is no module {name!r}", why, hint="busmicro run path/to/file.py:service"
    )


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        here = sorted(p.stem for p in path.parent.glob("*.py"))
        close = did_you_mean(path.stem, here)
        hint = close or f"Python files there: {', '.join(here[:10]) or 'none'}"
        raise TargetError(f"there is no file {path}", hint)
    _first_on_path(path.parent.resolve())
    name = path.stem if path.stem not in sys.modules else f"busmicro_run_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as failure:
        raise _broken(str(path), failure) from failure
    return module


def _broken(where: str, failure: Exception) -> TargetError:
    if isinstance(failure, BusmicroError):
        return TargetError(f"{where} cannot be imported", str(failure))
    frames = [
        frame
        for frame in traceback.extract_tb(failure.__traceback__)
        if "importlib" not in frame.filename and Path(frame.filename) != Path(__file__)
    ]
    at = [f"{frames[-1].filename}, line {frames[-1].lineno}"] if frames else []
    if isinstance(failure, SyntaxError):
        at = [f"{failure.filename}, line {failure.lineno}"]
    reason = f"{type(failure).__name__}: {failure}"
    return TargetError(f"{where} cannot be imported", reason, *at, hint="-v, for the whole story")


def _pick(module: ModuleType, where: str, name: str) -> Service:
    found = getattr(module, name, None)
    if isinstance(found, Service):
        return found
    services = [key for key, value in vars(module).items() if isinstance(value, Service)]
    if found is None:
        what = f"{where} has no {name!r}"
    else:
        what = f"{name!r} in {where} is a {type(found).__name__}, not a Service"
    if services:
        return _raise(what, f"its services: {', '.join(services)}", f"{where}:{services[0]}")
    return _raise(what, "it has no service at all", "")


def _raise(what: str, why: str, target: str) -> Service:
    raise TargetError(what, why, hint=f"busmicro run {target}" if target else "")
