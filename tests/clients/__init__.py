"""Client libraries, run against real hubs: `make clients`."""
