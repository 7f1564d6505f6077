"""Terminal chat with system, user and tool turns: `rolesafe chat`."""
