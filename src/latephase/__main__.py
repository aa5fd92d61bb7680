"""`latephase` and `python -m latephase`: the command line, if what it needs is installed."""

from latephase.freed_memory import keep_freed_memory


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: With a hint when the extra `latephase[study]` is not installed.
        ModuleNotFoundError: If what is missing is a module of this package.
    """
    try:
        from latephase.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "latephase":
            raise
        raise SystemExit(
            f"latephase: the command line needs the package {error.name!r}, which is not installed.\n"
            "Install the study extra: pip install 'latephase[study]'"
        ) from None
    keep_freed_memory()
    app()


if __name__ == "__main__":
    main()
