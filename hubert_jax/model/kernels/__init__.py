"""Computations with a plain form and forms that one platform runs faster.

`choice.choose` decides once, from the platform and what the run asks for; the modules around it
call what they are given.
"""
