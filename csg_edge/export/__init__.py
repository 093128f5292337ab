"""Build-side: from a student to graphs and bundles. Nothing at run time imports this package."""
