"""Classes and objects of a user's: found by import path, checked when handed in, told apart by their code."""

from stepwise.plugins.loading import (
    Plugin,
    check_choice,
    check_plugin,
    identity_of,
    import_path,
    is_import_path,
    load_plugin,
    make_plugin,
    options_of,
)

__all__ = [
    "Plugin",
    "check_choice",
    "check_plugin",
    "identity_of",
    "import_path",
    "is_import_path",
    "load_plugin",
    "make_plugin",
    "options_of",
]
