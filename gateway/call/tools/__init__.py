"""Tool calls of the model, their approval, and MCP calls that the server makes."""
