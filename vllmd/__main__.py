"""`python -m vllmd` is `vllmd`."""

from vllmd.daemon import main

if __name__ == "__main__":
    main()
