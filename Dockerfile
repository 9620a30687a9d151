# docker build -t baklava .
# docker run --rm -v "$PWD/results:/baklava/results" baklava snakemake --cores all --config experiment=demo
#
# PyTorch for CUDA, from PyPI; it runs on CPUs, too. Smaller and for CPUs alone:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t baklava .
# With a GPU: docker run --gpus all ...
FROM python:3.12-slim

ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /baklava

RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY baklava baklava
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt -e '.[chinese,gguf,slurm]'

COPY Snakefile ./
COPY conf conf
COPY workflow workflow
COPY profiles profiles

CMD ["baklava", "--help"]
