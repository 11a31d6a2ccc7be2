"""``python -m backend.cli``: the ``studio`` command without its script."""

from backend.cli import main

if __name__ == "__main__":
    main()
