"""Notifiers: who hears of failures and promotions."""
