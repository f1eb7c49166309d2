"""The configurations of a bundle: inference, training, evaluation, and training with several processes."""

from __future__ import annotations

from collections.abc import Sequence

from candy_monai.data.images.pictures import PICTURES, TIFFS
from candy_monai.data.pipelines.description import IMAGE, LABEL, PREDICTION, Entry
from candy_monai.export.monai_bundle.source import MAX_GRAD_NORM, BundleSource, Config
from candy_monai.export.monai_bundle.steps import for_image_alone, monai, region_masks, without_ignored
from candy_monai.inference.outputs import IN_ONE_FILE

_THREADS = 1
"""Number of threads that fill the cache. MONAI 1.6.1's NibabelReader stores the names of the files that it reads: while
another thread reads a label, an image of several files may silently lose channels."""

_MOST_IDS_OF_A_BYTE = 255
CHECK_SPACING = "check_spacing"
_WORKERS = 2
"""Number of processes that prepare training patches; whole images use none, since shared memory may be small."""


def inference_config(source: BundleSource) -> Config:
    """Return ``inference.json``: from the images of ``dataset_dir/imagesTs`` to label maps in ``output_dir``."""
    ending = f"0000{source.file_ending}"
    image = "f" if len(source.plan.channel_names) == 1 else source.image_files(f"f[:-{len(ending)}]")
    return {
        **_common(),
        **_spacing_check(source),
        "output_dir": "$@bundle_root + '/predictions'",
        "first_files": f"$sorted(glob.glob(@dataset_dir + '/imagesTs/*_{ending}'))",
        "datalist": "$[{'image': " + image + "} for f in @first_files]",
        "network_def": source.network.entry,
        "network": "$@network_def.to(@device)",
        # MONAI Label looks for every key that LoadImaged names.
        "preprocessing": _compose(_with_spacing_check(source, for_image_alone(source.preprocessing()))),
        "dataset": {"_target_": "monai.data.Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": _loader("@dataset"),
        "inferer": source.inferer(),
        "postprocessing": _compose([*source.postprocessing("@preprocessing"), *_saving(source)]),
        "handlers": [_checkpoint_loader(), _handler("StatsHandler", iteration_log=False)],
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        **_precision(source),
        "initialize": ["$monai.utils.set_determinism(seed=0)", *_in_precision(source)],
        "run": ["$@evaluator.run()"],
    }


def training_config(source: BundleSource, validation: Sequence[str]) -> Config:
    """Return ``train.json``: training, with the validation cases of the experiment held out if they exist."""
    plan, ending, supervision = source.plan, source.file_ending, source.network.supervision
    main = [] if supervision is None else [monai("Lambdad", keys=PREDICTION, func="$lambda outputs: outputs[0]")]
    images = source.image_files("@dataset_dir + '/imagesTr/' + c + '_'")
    label = f"@dataset_dir + '/labelsTr/' + c + '{ending}'"
    none_left = (
        "@dataset_dir + '/labelsTr: found ' + str(len(@cases)) + ' cases, and none is left to train on: "
        "add cases that are not in validation_cases, or hold out every fifth with --validation_cases []'"
    )
    return {
        **_common(),
        "imports": [*_common()["imports"], "$import sys"],
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_dir": "$@bundle_root + '/models'",
        "labels": f"$sorted(glob.glob(@dataset_dir + '/labelsTr/*{ending}'))",
        "cases": f"$[os.path.basename(f)[:-{len(ending)}] for f in @labels]",
        "validation_cases": list(validation),
        "held_out": "$[c for c in @cases if c in @validation_cases] or @cases[::5]",
        # Not used in an evaluation.
        "training_cases": f"$[c for c in @cases if c not in @held_out] or sys.exit({none_left})",
        "datalist": "$[{'image': " + images + ", 'label': " + label + ", 'case': c} for c in @cases]",
        "epochs": source.num_epochs(),
        "val_interval": 1,
        "network_def": source.network.entry if supervision is None else supervision.entry,
        "network": "$@network_def.to(@device)",
        **_average(source),
        "loss": source.loss(),
        "optimizer": source.optimizer(),
        "lr_scheduler": source.schedule(num_steps="@train#num_steps"),
        "train": {
            "deterministic_transforms": source.preprocessing(),
            "random_transforms": source.augmentation(),
            "preprocessing": {
                "_target_": "monai.transforms.Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": _cached("@training_cases", "@train#preprocessing"),
            "dataloader": _loader("@train#dataset", batch_size=plan.batch_size, shuffle=True, num_workers=_WORKERS),
            "num_steps": "$@epochs * len(@train#dataloader)",
            "inferer": {"_target_": "monai.inferers.SimpleInferer"},
            "postprocessing": _compose([*main, *_as_channels(source, with_masks=source.loss_takes_masks)]),
            "handlers": [
                _handler("LrScheduleHandler", lr_scheduler="@lr_scheduler", print_lr=False, epoch_level=False),
                _handler(
                    "ValidationHandler", validator="@validate#evaluator", epoch_level=True, interval="@val_interval"
                ),
                _handler("StatsHandler", tag_name="train_loss", output_transform=_from_engine(["loss"], first=True)),
            ],
            "key_metric": {"train_mean_dice": _mean_dice(source)},
            "hooks": _hooks(source),
            "trainer": {
                "_target_": "monai.engines.SupervisedTrainer",
                "_requires_": "@train#hooks",
                "max_epochs": "@epochs",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "optimizer": "@optimizer",
                "loss_function": "@loss",
                "inferer": "@train#inferer",
                "postprocessing": "@train#postprocessing",
                "key_train_metric": "@train#key_metric",
                "train_handlers": "@train#handlers",
                **_amp(source),
            },
        },
        "validate": {
            **_validated_network(source),
            "preprocessing": _compose("%train#deterministic_transforms"),
            "dataset": _cached("@held_out", "@validate#preprocessing"),
            "dataloader": _loader("@validate#dataset"),
            "inferer": source.inferer(),
            "postprocessing": _compose(_as_channels(source)),
            "handlers": [
                _handler("StatsHandler", iteration_log=False),
                _handler(
                    "CheckpointSaver",
                    save_dir="@ckpt_dir",
                    save_dict={"model": "@validate#network"},
                    save_key_metric=True,
                    key_metric_filename="model.pt",
                ),
            ],
            "key_metric": {"val_mean_dice": _mean_dice(source)},
            "evaluator": {
                "_target_": "monai.engines.SupervisedEvaluator",
                **({} if supervision is None else {"_requires_": "@validate#shared"}),
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@validate#network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
                "amp": False,
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


def evaluation_config(source: BundleSource) -> Config:
    """Return ``evaluate.json``, which is merged with ``train.json``: the held-out cases, on the grid of their files."""
    preprocessing = source.preprocessing()
    load = preprocessing[0]
    steps = [*for_image_alone(preprocessing), load | {"keys": LABEL}]
    masks = [*without_ignored(source.plan, [PREDICTION, LABEL])]
    if source.regions:
        channels = [step for key in (PREDICTION, LABEL) for step in region_masks(key, source.regions)]
    elif source.is_sigmoid:
        channels = []
    else:
        channels = [monai("AsDiscreted", keys=[PREDICTION, LABEL], to_onehot=source.plan.num_classes)]
    return {
        "validate#preprocessing": _compose(steps),
        "validate#postprocessing": _compose([*source.postprocessing("@validate#preprocessing"), *masks, *channels]),
        "validate#handlers": [
            _checkpoint_loader("@validate#network"),
            _handler("StatsHandler", iteration_log=False),
            _handler(
                "MetricsSaver",
                save_dir="@output_dir",
                metrics=["val_mean_dice"],
                metric_details=["val_mean_dice"],
                batch_transform="$lambda batch: [item['image'].meta for item in batch]",
                summary_ops="*",
            ),
        ],
        **_precision(source),
        "initialize": ["$monai.utils.set_determinism(seed=123)", *_in_precision(source, "@validate#network")],
        "run": ["$@validate#evaluator.run()"],
    }


def multi_gpu_config() -> Config:
    """Return ``multi_gpu_train.json``, which is merged with ``train.json`` and started by torchrun."""
    on_gpu = "torch.cuda.is_available()"
    return {
        "device": f"$torch.device('cuda:' + os.environ['LOCAL_RANK'] if {on_gpu} else 'cpu')",
        "network": {
            "_target_": "torch.nn.parallel.DistributedDataParallel",
            "module": "$@network_def.to(@device)",
            "device_ids": "$[@device] if @device.type == 'cuda' else None",
        },
        "train#sampler": {
            "_target_": "monai.data.DistributedSampler",
            "dataset": "@train#dataset",
            "even_divisible": True,
            "shuffle": True,
        },
        "train#dataloader#sampler": "@train#sampler",
        "train#dataloader#shuffle": False,
        "train#trainer#train_handlers": "$@train#handlers[: -1 if dist.get_rank() > 0 else None]",
        "validate#sampler": {
            "_target_": "monai.data.DistributedSampler",
            "dataset": "@validate#dataset",
            # Otherwise MONAI refuses fewer cases than processes; cases that are scored twice count twice there.
            "even_divisible": "$len(@validate#dataset) < dist.get_world_size()",
            "shuffle": False,
        },
        "validate#dataloader#sampler": "@validate#sampler",
        "validate#evaluator#val_handlers": "$None if dist.get_rank() > 0 else @validate#handlers",
        "initialize": [
            "$import torch.distributed as dist",
            f"$dist.is_initialized() or dist.init_process_group('nccl' if {on_gpu} else 'gloo')",
            f"${on_gpu} and torch.cuda.set_device(@device)",
            "$monai.utils.set_determinism(seed=123)",
        ],
        "run": ["$@train#trainer.run()"],
        "finalize": ["$dist.is_initialized() and dist.destroy_process_group()"],
    }


def _common() -> Config:
    return {
        "imports": ["$import glob", "$import os"],  # MONAI imports monai, torch and np itself
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/dataset'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    }


def _spacing_check(source: BundleSource) -> Config:
    """Return the entry that warns about a case which candy_monai would resample differently; empty if there is none."""
    if (spacing := source.spacing) is None:
        return {}
    shape = f"[round(n * a / b) for n, a, b in zip(image.shape[1:], image.pixdim.tolist(), {spacing})]"
    told = (
        'f\'{image.meta.get("filename_or_obj", "an image")}: has another spacing than the cases that were trained on, '
        f"{spacing} mm: MONAI resamples it, and the label map differs from that of candy_monai'"
    )
    return {
        "imports": [*_common()["imports"], "$import warnings"],
        CHECK_SPACING: f"$lambda image: image if {shape} == list(image.shape[1:]) else warnings.warn({told}) or image",
    }


def _with_spacing_check(source: BundleSource, steps: list[Entry]) -> list[Entry]:
    check = [monai("Lambdad", keys=IMAGE, func=f"@{CHECK_SPACING}")] if source.spacing is not None else []
    return [each for step in steps for each in ([*check, step] if step["_target_"].endswith(".Spacingd") else [step])]


def _precision(source: BundleSource) -> Config:
    is_own = source.names_monai_alone and source.amp_dtype is not None
    return {"amp_dtype": source.amp_dtype} if is_own else {}


def _in_precision(source: BundleSource, network: str = "@network") -> list[str]:
    """Return the statements that set the experiment's precision, which MONAI's engines use only on GPUs."""
    if not _precision(source):
        return []
    enabled = ", enabled=@device.type == 'cuda'" if source.amp_dtype == "float16" else ""
    autocast = f"torch.autocast(@device.type, getattr(torch, @amp_dtype){enabled})"
    return [
        f"$setattr({network}, 'forward', {autocast}({network}.forward))",
        f"${network}.register_forward_hook(lambda network, inputs, scores: scores.float())",
    ]


def _amp(source: BundleSource) -> Config:
    """Return the arguments that set the experiment's precision in MONAI's trainer, which uses it only on GPUs."""
    if source.amp_dtype is None:
        return {"amp": False}
    return {"amp": "$@device.type == 'cuda'", "amp_kwargs": {"dtype": f"$torch.{source.amp_dtype}"}}


def _average(source: BundleSource) -> Config:
    """Return the moving average of the weights, as `ExponentialMovingAverage` computes it; empty without one."""
    if source.origin.average is None:
        return {}
    return {
        "average": {
            "_target_": "torch.optim.swa_utils.AveragedModel",
            "model": "@network_def",
            "device": "@device",
            "avg_fn": "$lambda mean, new, count: mean.lerp(new, (9 / (10 + count)).clamp(min=0.001))",
        }
    }


def _validated_network(source: BundleSource) -> Config:
    """Return the network that is validated and saved: that of ``inference.json``, sharing the trained tensors.

    With a moving average, these are its tensors.
    """
    average, supervision = source.origin.average, source.network.supervision
    trained = "@network_def.to(@device)" if average is None else "@average.module"
    if supervision is None:
        return {"network": "@network" if average is None else f"${trained}"}
    weights = f"{trained}.state_dict(keep_vars=True)"
    return {
        "network_def": source.network.entry,
        "network": "$@validate#network_def.to(@device)",
        "shared": f"$@validate#network.load_state_dict({weights}, strict=False, assign=True)",
    }


def _hooks(source: BundleSource) -> list[str]:
    """Return the hooks that PyTorch calls in each step, since MONAI's trainer has no argument for them."""
    clip = f"torch.nn.utils.clip_grad_norm_(@network.parameters(), {MAX_GRAD_NORM})"
    hooks = [f"$@optimizer.register_step_pre_hook(lambda *_: ({clip}, None)[1])"]  # the hook must return None
    if source.origin.average is not None:
        hooks.append("$@optimizer.register_step_post_hook(lambda *_: @average.update_parameters(@network_def))")
    if source.network.supervision is not None and source.network.supervision.is_stacked:
        apart = "lambda network, images, output: output.unbind(1) if network.training else output"
        hooks.append(f"$@network.register_forward_hook({apart})")
    return hooks


def _compose(steps: list[Entry] | str) -> Config:
    return {"_target_": "monai.transforms.Compose", "transforms": steps}


def _cached(cases: str, transform: str) -> Config:
    data = f"$[d for d in @datalist if d['case'] in {cases}]"
    return {"_target_": "monai.data.CacheDataset", "data": data, "transform": transform, "num_workers": _THREADS}


def _loader(dataset: str, **options: object) -> Config:
    common = {"batch_size": 1, "shuffle": False, "num_workers": 0}
    return {"_target_": "monai.data.DataLoader", "dataset": dataset, **common, **options}


def _handler(name: str, **arguments: object) -> Config:
    return {"_target_": f"monai.handlers.{name}", **arguments}


def _checkpoint_loader(network: str = "@network") -> Config:
    path = "$@bundle_root + '/models/model.pt'"
    return _handler("CheckpointLoader", load_path=path, load_dict={"model": network}, map_location="@device")


def _from_engine(keys: Sequence[str], **options: object) -> Config:
    return _handler("from_engine", keys=list(keys), **options)


def _mean_dice(source: BundleSource) -> Config:
    of_maps = _from_engine([PREDICTION, LABEL])
    return _handler("MeanDice", include_background=source.is_sigmoid, output_transform=of_maps)


def _as_channels(source: BundleSource, *, with_masks: bool = False) -> list[Entry]:
    """Return the steps from logits and ids (or masks) on the plan's grid to maps of 0 and 1, one channel each."""
    ignored = without_ignored(source.plan, [PREDICTION, LABEL])
    if source.is_sigmoid:
        return [
            monai("Activationsd", keys=PREDICTION, sigmoid=True),
            monai("AsDiscreted", keys=PREDICTION, threshold=0.5),
            *ignored,
            *(region_masks(LABEL, source.regions) if source.regions and not with_masks else []),
        ]
    return [
        monai("AsDiscreted", keys=PREDICTION, argmax=True),
        *ignored,
        monai("AsDiscreted", keys=[PREDICTION, LABEL], to_onehot=source.plan.num_classes),
    ]


def _saving(source: BundleSource) -> list[Entry]:
    """Return the steps that write a label map, named after its case, in the format of its image."""
    ending, plan = source.file_ending, source.plan
    highest = max([plan.num_classes, *(region.paints for region in plan.regions)])
    save = monai(
        "SaveImaged",
        keys=PREDICTION,
        output_dir="@output_dir",
        output_postfix="",
        output_ext=IN_ONE_FILE.get(ending, ending),
        output_dtype="uint8" if highest <= _MOST_IDS_OF_A_BYTE else "int16",
        separate_folder=False,
        print_log=False,
        output_name_formatter=(
            f"$lambda meta, _: {{'subject': os.path.basename(meta['filename_or_obj'])[:-{len('_0000' + ending)}]}}"
        ),
    )
    # These are not arguments of SaveImaged, but options of its writer.
    options = {"_target_": "monai.transforms.SaveImaged.set_options", "self": save}
    if ending in (*PICTURES, *TIFFS):  # MONAI's writer of pictures swaps rows and columns by default
        return [options | {"write_kwargs": {"reverse_indexing": False}}]
    if plan.num_dims == 2:
        return [save]
    # MONAI would also remove a last axis of length 1, as in a volume of one slice.
    kept: Entry = {"squeeze_end_dims": False}
    if ending.startswith(".nii"):
        # Otherwise the channel's axis would be written too: it is made the last but one, which MONAI leaves out.
        kept |= {"channel_dim": [0, 3], "spatial_ndim": 2}
    return [options | {"data_kwargs": kept}]
