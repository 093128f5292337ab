"""`python -m csg_edge` is the command `csg-edge`."""

from csg_edge.cli.main import main

main()
