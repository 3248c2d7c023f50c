"""A whole RL step here and in TRL: the same conversations, the same tiny model, plain GRPO without a reference.

    python tests/bench_trl.py [conversations] [turns]         needs `pip install trl` and skips without it

TRL is given a rollout_func that talks turn by turn through its own model's `generate`, which encodes the history
again each turn: what its users write where no inference server is at hand. Both sides stop a conversation when its
environment does, and no turn ends by itself, so that all sample the same number of tokens.
"""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import grpo  # noqa: E402
import torch  # noqa: E402
from transformers import PrinterCallback  # noqa: E402

NEW, GROUP = 20, 8


def ours(model, tokenizer, talks, turns):
    """Seconds of a rollout and of an update."""
    engine = grpo.Engine(model, tokenizer, rows=talks, max_len=2048)
    optimizer = grpo.make_optimizer(model, 1e-4)
    tick = time.perf_counter()
    trajs, _ = grpo.play(engine, talks, turns, NEW)
    middle = time.perf_counter()
    advantages = [[float(i % 2) - 0.5] * turns for i in range(talks)]
    grpo.grpo_step(model, optimizer, trajs, advantages, lr=1e-4)
    return middle - tick, time.perf_counter() - middle


def theirs(model, tokenizer, talks, turns, trl, dataset):
    """The same by TRL's trainer."""
    seconds = []

    def talk(prompts, trainer):
        tick = time.perf_counter()
        engine = grpo.Engine(model, tokenizer, rows=1, max_len=2048)
        all_talks = [grpo.Talk(engine, grpo.DummyEnv(i // GROUP, turns), (0, i), i // GROUP) for i in range(talks)]
        prompt_ids = [list(each.traj.ids) for each in all_talks]
        for _ in range(turns):
            said = [each.traj.ids for each in all_talks]
            width = max(map(len, said))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in said])
            real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in said])
            with torch.no_grad():
                out = model.generate(input_ids=ids, attention_mask=real, do_sample=True, top_k=0, max_new_tokens=NEW,
                                     min_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id)
            for each, new in zip(all_talks, out[:, width:].tolist()):
                each.act(new, [0.0] * len(new))
                while each.asks:
                    each.advance(each.env.user.answer([each.query])[0])
        seconds.append(time.perf_counter() - tick)
        trajs, begin = [each.traj for each in all_talks], [len(ids) for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": [t.ids[n:] for t, n in zip(trajs, begin)],
                "logprobs": [t.logps[n:] for t, n in zip(trajs, begin)],        # not read: the model is its own sampler
                "env_mask": [t.mask[n:] for t, n in zip(trajs, begin)]}

    def reward(completions, **columns):
        return [float(i % 2) for i in range(len(completions))]

    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(folder, per_device_train_batch_size=8, gradient_accumulation_steps=talks // 8, beta=0.0,
                              num_generations=GROUP, max_completion_length=2048, max_steps=1, report_to="none",
                              use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
                              save_strategy="no", logging_strategy="no", learning_rate=1e-4)
        trainer = trl.GRPOTrainer(model, reward, args, dataset, processing_class=tokenizer, rollout_func=talk)
        trainer.remove_callback(PrinterCallback)
        tick = time.perf_counter()
        trainer.train()
        return seconds[0], time.perf_counter() - tick - seconds[0]


def main(talks=64, turns=8):
    try:
        import datasets
        import trl
    except ImportError:
        print("TRL is not installed: pip install trl")
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model, tokenizer = grpo.tiny_policy([Path(grpo.__file__).read_text()])
    dataset = datasets.Dataset.from_list([{"prompt": str(i)} for i in range(talks // GROUP)])
    runs = {"ours": [], "TRL": []}
    grpo.play(grpo.Engine(model, tokenizer, rows=8), 8, 2, NEW)
    for _ in range(3):
        runs["ours"].append(ours(model, tokenizer, talks, turns))
        runs["TRL"].append(theirs(model, tokenizer, talks, turns, trl, dataset))
    print(f"{talks} conversations of {turns} turns of {NEW} tokens, TRL {trl.__version__}, medians of three\n")
    middle = {name: sorted(each, key=sum)[1] for name, each in runs.items()}
    print(f"{'':8}{'rollout':>10}{'update':>10}{'tokens/s':>10}")
    for name, (rollout, update) in middle.items():
        print(f"{name:8}{rollout:8.2f} s{update:8.2f} s{talks * turns * NEW / (rollout + update):10.0f}")
    ratios = [sum(b) / sum(a) for a, b in zip(runs["ours"], runs["TRL"])]
    print(f"a step of TRL takes {sorted(ratios)[1]:.1f} times ours ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
