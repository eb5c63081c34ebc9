# divcon with its command line, stores, page and export.
#
#   docker build -t divcon .                                     # for the CPU
#   docker build -t divcon:cuda --build-arg TORCH=cuda .         # for NVIDIA GPUs; several GB more
#
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" divcon train photos/ --out runs/photos
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" divcon:cuda train photos/ --out runs/photos
#   docker run --rm -p 8000:8000 -v "$PWD:/work" divcon serve runs/photos --host 0.0.0.0
#
# The processes that decode images pass them in shared memory, of which a container has 64 MB unless --shm-size says more.
# Pretrained weights are downloaded into /cache; mount a volume there to keep them.
FROM python:3.12-slim

ARG TORCH=cpu
ENV HF_HOME=/cache TORCH_HOME=/cache MPLCONFIGDIR=/tmp NUMBA_CACHE_DIR=/tmp PYTHONUNBUFFERED=1
RUN mkdir -m 777 /cache /work
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
# uv chooses PyTorch's build for the CPU; without it the one for CUDA comes, which is several GB larger.
RUN pip install --no-cache-dir uv \
    && if [ "$TORCH" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi \
    && uv pip install --system --no-cache ".[demo,export,map,postgres,search,serve]" \
    && rm -rf /src
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["divcon"]
CMD ["--help"]
