"""Settings files to values and schema; standard library only below the schema."""
