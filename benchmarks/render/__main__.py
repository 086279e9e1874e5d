"""Write the pages of all records: see ``pages.py``."""

from benchmarks.render.pages import main

if __name__ == "__main__":
    main()
