#!/bin/bash
# Node 0 and node 1 of one engine.
export SGLANG_SHARED_EXPERT_TP1=1
TP=16
ssh node0 true; python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V4-Pro --tp "$TP" \
  --moe-runner-backend marlin --nnodes 2 --node-rank 0 --dist-init-addr $NODE0:30300 &
python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V4-Pro --tp "$TP" \
  --moe-runner-backend marlin --nnodes 2 --node-rank 1 --dist-init-addr $NODE0:30300
