"""What processes exchange: state.json, reload requests, credentials, and the names of the worker."""
