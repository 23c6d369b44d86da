"""HTML reports: templates and plots."""
