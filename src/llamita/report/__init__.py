"""Shows run directories: report.html, charts, summaries."""
