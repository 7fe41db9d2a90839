# docker build -t trie-dpo . && docker run --gpus all -v "$PWD/runs:/app/runs" trie-dpo
FROM python:3.11-slim
WORKDIR /app
COPY README.md LICENSE pyproject.toml constraints.txt train.py ./
RUN pip install --no-cache-dir -c constraints.txt -e .
COPY data data/
COPY lora lora/
COPY dpo dpo/
COPY run run/
COPY recipes recipes/
ENTRYPOINT ["python", "train.py"]
CMD ["--rank", "8", "--alpha", "16"]
