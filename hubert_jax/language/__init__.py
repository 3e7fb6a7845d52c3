"""Language: lexicons and n-gram language models, without any audio."""
