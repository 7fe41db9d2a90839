"""The page that a run leaves, report.html: what stands in it, its template, looks and script."""
