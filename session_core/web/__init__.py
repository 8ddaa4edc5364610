"""What HTTP is: endpoints, events, errors, access, settings, serving, the page."""
