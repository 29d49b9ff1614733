"""Checks of a step that need no model: does it give the answer away (leaks), are its equations true (sums)?"""
