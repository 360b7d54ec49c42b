"""What only a browser can tell: `make test-browser` runs these with Debian's Chromium."""
