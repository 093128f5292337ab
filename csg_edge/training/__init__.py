"""Build-side: torch lives here. Nothing at run time imports this package."""
