"""HTML reports: tables, plots, and the templates that show them."""
