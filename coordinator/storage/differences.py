"""In what two configurations of a run differ, as far as it makes them two runs."""

# Keys of the configuration that say where something lies. A run is known by what lies there.
PLACES = frozenset({"model.path", "data.root", "data.public.path", "data.test.path", "sub_fm.path"})


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Dotted keys with different values, but for where things lie."""
    return [key for key in _different(old, new) if key not in PLACES]


def _different(old: dict[str, object], new: dict[str, object], within: str = "") -> list[str]:
    """Dotted keys with different values. A table or its key that only `new` has came with a later version."""
    found = []
    later = {key for key in new.keys() - old.keys() if within or isinstance(new[key], dict)}
    for key in sorted((old.keys() | new.keys()) - later):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _different(a, b, f"{within}{key}.")
        elif a != b:
            found.append(f"{within}{key}")
    return found
