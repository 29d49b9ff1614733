"""A router behind one model name: an OpenAI-compatible server (`stepwise serve`), and a provider of LiteLLM.

`service.Service` answers requests and knows no HTTP; `app` puts it behind HTTP, `doors` behind LiteLLM and DSPy.
"""
