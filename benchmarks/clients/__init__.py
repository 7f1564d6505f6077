"""Programs that speak OpenAI's API, each run once against `rolesafe serve`."""
