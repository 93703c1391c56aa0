"""Every module and folder can be reached by its dotted name."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import ecstruct


def test_no_name_in_a_package_hides_a_module_or_a_folder():
    names = ["ecstruct", *(m.name for m in pkgutil.walk_packages(ecstruct.__path__, "ecstruct."))]
    assert len(names) > 200
    for name in names:
        import_module(name)
    hidden = []
    for name in names:
        for folder in getattr(sys.modules[name], "__path__", ()):
            for path in Path(folder).glob("[!_]*"):
                if path.is_dir() or path.suffix == ".py":
                    found = getattr(sys.modules[name], path.stem, None)
                    if found not in (None, sys.modules.get(f"{name}.{path.stem}")):
                        hidden.append(f"{name}.{path.stem}")
    assert not hidden
