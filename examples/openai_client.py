"""Any OpenAI client, pointed at the gateway: `pip install openai`, then `python examples/openai_client.py`."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")

print("models:", ", ".join(model.id for model in client.models.list()))

stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Who are you?"}],
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

whole = client.completions.create(model="demo", prompt="Q: Who are you?\nA:", max_tokens=100, temperature=0)
print(whole.choices[0].text.strip())
print(whole.usage)
