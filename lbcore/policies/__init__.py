"""What a policy is made of: filters, scorers or a cost, pickers, and the tables that name them."""
