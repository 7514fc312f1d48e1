"""The names that this project's packages have, and what else has one of them where Python would find it first."""

from pathlib import Path

OWN_PACKAGES = ("actors", "learner", "orchestrator", "rewards")


def clash(folder: Path) -> str | None:
    """What to say when a module of the user's in this folder, which processes look into first, has such a name."""
    if (folder / "orchestrator" / "cli.py").is_file():  # a checkout of this project
        return None
    for name in OWN_PACKAGES:
        for module in (folder / f"{name}.py", folder / name / "__init__.py"):
            if module.is_file():
                return (
                    f"{module}: must not have the name of a package of mi-epo, {name}, which Python would take it for; "
                    "rename it, or start from another folder"
                )
    return None
