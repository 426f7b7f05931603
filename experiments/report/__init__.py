"""Reports: what a run or an experiment came to, as a document of text, tables and plots."""
