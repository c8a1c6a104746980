"""`./build.sh soak`: hours of load with a fault every minute; see __main__.py."""
