# candy_monai on a CPU, with the versions of constraints.txt.
#
#     docker build --tag candy-monai --build-arg TORCH_INDEX=<PyTorch's index of builds without CUDA> .
#     docker run --rm --volume "$PWD:/work" --user "$(id -u):$(id -g)" candy-monai train Dataset004_Hippocampus --budget 10m
#
# Without TORCH_INDEX the image has PyTorch's usual build, which is several gigabytes larger.

FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/candy
COPY constraints.txt ./
RUN /opt/candy/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY candy_monai ./candy_monai
COPY bundles ./bundles
RUN /opt/candy/bin/pip install --constraint constraints.txt ".[bundle,einops,safetensors,tiff]"

FROM python:3.12-slim
COPY --from=build /opt/candy /opt/candy
ENV PATH=/opt/candy/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
USER 65534:65534
ENTRYPOINT ["candy-monai"]
CMD ["--help"]
