"""What a step costs: manifoldnet's paths, torch's own, geoopt's, and parametrizations."""
