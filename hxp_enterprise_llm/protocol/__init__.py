"""What processes tell each other: state.json, reload requests, credentials, names of the worker."""
