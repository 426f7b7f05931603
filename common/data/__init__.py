"""Examples: out of tables, folders and presets, prepared as a model reads them, in batches."""
