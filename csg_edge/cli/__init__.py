"""The command line: `csg-edge`, one module a family of commands. What is heavy is imported inside the commands."""
