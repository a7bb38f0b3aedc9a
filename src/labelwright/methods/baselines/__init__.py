"""What the methods are compared with, in the same loop on the same views."""
