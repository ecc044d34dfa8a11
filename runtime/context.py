"""The execution context: an engine with shapes, addresses and memory of its own, ready to run.

A change of shape or address marks the context; the next enqueue (or :meth:`ExecutionContext.prepare`) then resolves and binds. Otherwise
an enqueue only enqueues: it allocates nothing, converts nothing, waits for nothing and decides nothing.

A network in which the host has to step in (branches, loops, shapes that depend on data) is handed to a :class:`runtime.runner.Runner`
instead: its enqueue waits where sizes or conditions are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fusion.bind import bind_type
from fusion.dims import substitute
from fusion.network import TensorType
from runtime.addresses import Addresses, as_in_memory, check_memory, check_place, shape_text
from runtime.arena import Arena
from runtime.device import Binding, CaptureError, Device, Program, Stream, Tensor
from runtime.engine import Engine, EngineError, InputRange, sizes_of
from runtime.enqueue import Action, bind_step, locate, schedule
from runtime.exclusive import exclusive
from runtime.heap import Heap
from runtime.interop import foreign, stream_handle
from runtime.most_memory import known_limits, most_memory_at
from runtime.observed import Observed
from runtime.resolution import Resolution
from runtime.runner import Launch, Run, Runner, unknown_outputs
from runtime.watch import Watch
from tactics.tactic import Buffer, Copy, Plan, tensor_bytes


class ExecutionContext(Observed):
    """Runs one engine on one device, one inference at a time; several contexts of an engine may run at once."""

    def __init__(self, engine: Engine, device: Device, profile: int = 0, allocation: str = "static") -> None:
        """``allocation``: the arena is sized for all profiles (``static``), for ``profile``, or for the actual shapes (``runtime``); or
        there is none until :meth:`set_device_memory` gives one (``user``).

        Raises:
            EngineError: the engine does not fit the device or this version.
            ValueError: no such profile or allocation strategy.
            runtime.device.DeviceMemoryError: weights or activations do not fit.
        """
        if allocation not in ("static", "profile", "runtime", "user"):
            raise ValueError(f"allocation strategy {allocation!r}: static, profile, runtime or user")
        super().__init__(engine, device)
        self._allocation = allocation
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses = Addresses(device, engine.network.formats)
        self._captured = False  # a graph of the caller's holds an enqueue of this context
        self.name = ""
        self._resolution: Resolution | None = None
        self._programs: list[Program | None] = []
        self._actions: list[Action] | None = None
        self._arena = Arena(device, given=allocation == "user")
        self._aux: list[Stream] = []
        self._external: dict[int, Stream] = {}
        self._stream: Stream | None = None
        self.binding_version = 0  # grows whenever programs are bound anew
        self.revision = 0  # grows whenever a shape, an address or a stream changes
        self._touched = self._layers_by_io()
        self._runner: Runner | None = None  # of a network in which the host steps in
        self._heap = Heap(device, given=allocation == "user")  # its activations
        self._found: dict[str, Tensor] = {}  # outputs of the last inference of such a network
        self._open = frozenset(unknown_outputs(engine.network))
        self.set_optimization_profile(profile)

    # --- shapes ------------------------------------------------------------------------------------------------------

    @exclusive
    def set_optimization_profile(self, profile: int) -> None:
        """Use profile ``profile``; shapes that it fixes are set, others are forgotten.

        Raises:
            ValueError: no such profile.
        """
        count = len(self.engine.profiles)
        if not 0 <= profile < count:
            raise ValueError(
                f"Selected profile index {profile} exceeds the number of profiles that the engine holds ({count})."
            )
        self._may_change()
        self.profile = profile
        ranges = self.engine.profiles[profile]
        network = self.engine.network
        self._shapes = {
            name: ranges[name].opt
            for name in network.inputs
            if network.tensors[name].is_static or ranges[name].min == ranges[name].max
        }
        self._resolution = None
        self._changed()
        if self.engine.is_segmented:
            self._runner = Runner(self.loaded, profile)
        elif self._allocation in ("static", "profile"):
            self._reserve()

    def set_optimization_profile_async(self, profile: int, stream: Any) -> bool:
        """As :meth:`set_optimization_profile`: a change takes effect at the next enqueue, whichever stream that is on."""
        del stream
        self.set_optimization_profile(profile)
        return True

    @property
    def active_optimization_profile(self) -> int:
        """The number of the profile in use."""
        return self.profile

    @exclusive
    def set_input_shape(self, name: str, shape: Sequence[int]) -> None:
        """The shape of input ``name`` from the next inference on.

        Raises:
            ValueError: no such input, or a shape outside the profile.
        """
        if name not in self.engine.network.inputs:
            raise ValueError(
                f'Cannot find input tensor with name "{name}": the inputs are {", ".join(self.engine.network.inputs)}'
            )
        extents = tuple(shape)
        if not all(hasattr(dim, "__index__") for dim in extents):
            raise ValueError(f"input {name!r}: {extents} is no shape; give a tuple of integers")
        given = tuple(int(dim) for dim in extents)
        if self._shapes.get(name) == given:
            return
        allowed: InputRange = self.engine.profiles[self.profile][name]
        inside = len(given) == len(allowed.min) and all(
            low <= dim <= high for low, dim, high in zip(allowed.min, given, allowed.max, strict=True)
        )
        if not inside:
            raise ValueError(
                f"input {name!r}: shape {shape_text(given)} is outside of profile {self.profile} ({shape_text(allowed.min)} to {shape_text(allowed.max)})"
            )
        self._may_change()
        self._shapes[name] = given
        self._resolution = None
        self._changed()

    @exclusive
    def infer_shapes(self) -> list[str]:
        """Resolve all shapes; returns the inputs whose shape is not set (then nothing is resolved).

        Raises:
            ValueError: the shapes contradict each other.
            EngineError: a layer cannot run at these shapes.
        """
        missing = [name for name in self.engine.network.inputs if name not in self._shapes]
        if not missing and self._runner is None:
            self._resolve()
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor ``name``: with -1 for what is unknown until all input shapes are set, or until an inference has run."""
        if name in self._shapes:
            return self._shapes[name]
        if self.infer_shapes():
            return self.engine.get_tensor_shape(name)
        if self._runner is not None:
            if name in self._found:
                return self._known(name, self._found[name].type)
            sizes = sizes_of(self.engine.network, self._shapes)
            dims = (substitute(dim, sizes) for dim in self.engine.network.io_shape(name))
            return tuple(dim if isinstance(dim, int) else -1 for dim in dims)
        return self._known(name, self._resolve().types[name])

    def _known(self, name: str, kind: TensorType) -> tuple[int, ...]:
        """The shape that callers know ``name`` by, which is of ``kind`` in memory."""
        layout = self.engine.network.formats.get(name)
        return _shape(kind) if layout is None else tuple(map(int, layout.known_as(kind.shape)))  # type: ignore[arg-type]

    def get_tensor_strides(self, name: str) -> tuple[int, ...]:
        """The strides of input or output ``name`` in elements, as its format says (row-major without gaps unless the build was told otherwise); -1
        where they depend on what is not known yet."""
        shape, layout = self.get_tensor_shape(name), self.engine.network.formats.get(name)
        if layout is not None:
            return layout.strides(shape) if min(shape) >= 0 else (-1,) * len(shape)
        inner = [shape[axis + 1 :] for axis in range(len(shape))]
        return tuple(-1 if min(dims, default=0) < 0 else prod(dims) for dims in inner)

    def get_max_output_size(self, name: str) -> int:
        """The most bytes that output ``name`` can have at the shapes that are set; -1 when these are not set, or the data decides without a limit."""
        network = self.engine.network
        if name not in network.outputs or not self.all_shapes_set:
            return -1
        try:
            return tensor_bytes(bind_type(network.tensors[name], known_limits(network, sizes_of(network, self._shapes))))
        except KeyError:
            return -1

    def update_device_memory_size_for_shapes(self) -> int:
        """Bytes of device memory that are enough for activations at the shapes that are set.

        Raises:
            ValueError: a shape is not set.
            EngineError: nobody knows: the data, a branch or a loop decides a size that has no limit.
        """
        return self._resolve().memory.size if self._runner is None else most_memory_at(self.engine, self.profile, self._shapes)

    @property
    def all_shapes_set(self) -> bool:
        """Whether every input has a shape."""
        return len(self._shapes) == len(self.engine.network.inputs)

    @property
    def device_memory_size(self) -> int:
        """Bytes of device memory for activations and workspaces."""
        return self._arena.size + self._heap.size + (self._runner.memory_size if self._runner is not None else 0)

    @property
    def is_segmented(self) -> bool:
        """Whether the host steps in during an inference: then no single graph can hold it, and an enqueue waits."""
        return self._runner is not None

    def resolution(self) -> Resolution:
        """The engine at the present shapes: plans, types, memory plan.

        Raises:
            ValueError, EngineError: as :meth:`infer_shapes`.
        """
        return self._resolve()

    def layers(self) -> list[int]:
        """The layers (numbers) that an inference at the present shapes runs, or may run where that depends on data."""
        if self._runner is None:
            return [step.layer for step in self._resolve().steps]
        elided = self.loaded.outline.elided
        return [number for number, layer in enumerate(self.engine.network.layers) if layer.name not in elided]

    # --- addresses ---------------------------------------------------------------------------------------------------

    @exclusive
    def set_tensor_address(self, name: str, value: Any) -> None:
        """Where input or output ``name`` lies: an address, or a tensor of any library on the engine's device (no copy is made). A tensor of a
        channels-last format has the strides of :meth:`get_tensor_strides`, or is row-major in the order in which its axes lie in memory.

        The memory must hold the tensor at the shapes in use, be aligned (16 bytes on a GPU), and live until the work has ended.

        Raises:
            ValueError: no such tensor, a wrong data type, shape, device or alignment.
        """
        network = self.engine.network
        if name not in network.inputs and name not in network.outputs:
            raise ValueError(f"no input or output is named {name!r}")
        layout, declared = network.formats.get(name), network.tensors[name]
        given = foreign(value, strided=layout is not None)
        known = given.shape is not None and self.all_shapes_set and name not in self._open
        shape = self.get_tensor_shape(name) if known else None
        if layout is not None:
            given, shape = as_in_memory(name, given, layout, declared.shape, shape)
        check_memory(name, given, declared, shape, self.device, name in network.outputs)
        if self._addresses[name] != given.address:
            self._may_change()
        if self._addresses.set(name, given):
            self._forget(name)

    def get_tensor_address(self, name: str) -> int:
        """The address set for input or output ``name``, 0 when none is."""
        return self._found[name].address if name in self._found else self._addresses[name]

    @exclusive
    def set_output_allocator(self, name: str, allocator: Any) -> None:
        """Ask ``allocator`` where output ``name`` shall lie once its size is known; None takes it away again.

        It is a function of the name, the size in bytes and the shape, and returns an address or a tensor of any library; or an object
        with TensorRT's methods ``reallocate_output_async(name, memory, size, alignment, stream)`` and ``notify_shape(name, shape)``.

        Raises:
            ValueError: no such output.
        """
        if name not in self.engine.network.outputs:
            raise ValueError(f"no output is named {name!r}: the outputs are {', '.join(self.engine.network.outputs)}")
        self._addresses.allocators.pop(name, None)
        if allocator is not None:
            self._addresses.allocators[name] = allocator
        self._changed()

    @exclusive
    def set_aux_streams(self, streams: Sequence[Any]) -> None:
        """Streams for the layers that run beside the main stream (``engine.num_aux_streams`` of them are used).

        Raises:
            ValueError: too few, or the legacy default stream is among them.
        """
        self._may_change()
        if len(streams) < self.engine.num_aux_streams:
            raise ValueError(f"{len(streams)} auxiliary streams given, the engine uses {self.engine.num_aux_streams}")
        given = [self._as_stream(stream) for stream in streams]
        if any(stream.legacy for stream in given):
            raise ValueError("an auxiliary stream is the legacy default stream, which all others wait for: give non-blocking streams")
        self._aux = given
        self._changed()

    @exclusive
    def set_device_memory(self, memory: Any, size: int | None = None) -> None:
        """Activations and workspaces lie in ``memory`` from now on: an address (256-byte aligned) of ``size`` bytes, memory of
        the device's own (``device.allocate``), or a tensor of any library.

        Contexts that never run at the same time may share it; ``engine.device_memory_size`` bytes hold any inference.

        Raises:
            ValueError: it is misaligned, on another device, or an address without a size.
            runtime.device.DeviceMemoryError: at the next enqueue, when it is too small for the shapes.
        """
        given = foreign(memory)
        check_place("device memory: it", given, self.device)
        size = size if given.bytes is None else given.bytes
        if size is None:
            raise ValueError("device memory: give the size in bytes with an address")
        self._may_change()
        self._allocation = "user"
        (self._arena if self._runner is None else self._heap).lie_in(given, size)
        self._programs = []
        self._changed()

    # --- running -----------------------------------------------------------------------------------------------------

    @exclusive
    def prepare(self) -> None:
        """Do now what the next enqueue would have to: resolve shapes, allocate, bind programs.

        Raises:
            ValueError, EngineError: shapes or addresses are missing or wrong.
            runtime.device.DeviceError: memory or a kernel is.
        """
        if self._runner is not None:
            self._inputs()
        elif self._actions is None:
            self._bind()

    @exclusive
    def execute_async_v3(self, stream: Any) -> None:
        """Enqueue one inference on ``stream`` (a handle, or an object of any library that has one).

        Raises:
            as :meth:`prepare`, when something changed since the last enqueue.
        """
        main = self._as_stream(stream)
        if self._runner is not None:
            self.run_segments(main, watch=self._watch(main))
            self._report(main)
            return
        if main is not stream and main.capturing:  # the caller's own graph
            if self._actions is None:
                raise EngineError(
                    "the context has changed since its last enqueue, which a capture cannot hold: enqueue it once before the capture starts"
                )
            self._captured = True
        if self._actions is None:
            self._bind()
        assert self._actions is not None
        if (self._recorder is not None or self._listener is not None) and not main.capturing and (watch := self._watch(main)):
            self.enqueue_watched(main, watch)
            self._report(main)
            return
        if not self._aux:
            for action, _, _ in self._actions:
                action(main)
            return
        streams = (main, *self._aux)
        for action, number, _ in self._actions:
            action(streams[number])

    @exclusive
    def enqueue_watched(self, stream: Any, watch: Watch) -> None:
        """As :meth:`execute_async_v3`, shown to ``watch`` layer by layer."""
        self.prepare()
        if self._runner is not None:
            self.run_segments(self._as_stream(stream), watch=watch)
            return
        resolution, streams = self._resolve(), (self._as_stream(stream), *self._aux)
        for action, number, layer in self._actions or ():
            if layer >= 0:
                watch.before(layer, streams[number])
            action(streams[number])
            if layer >= 0:
                watch.after(layer, streams[number], lambda name: self._tensor(resolution, name))

    @exclusive
    def run_segments(self, stream: Stream, launch: Launch | None = None, watch: Watch | None = None) -> None:
        """An inference of a network in which the host steps in (see :class:`runtime.runner.Run`).

        Raises:
            as :meth:`prepare`; CaptureError: the stream is being captured.
        """
        assert self._runner is not None
        if stream.capturing:
            raise CaptureError(
                "no CUDA graph can hold this network: the host steps in during an inference (branches, loops or shapes from data); "
                "run it without capture, or with trtcli's own runner, which captures the segments between (trtcli check names them)"
            )
        self._provide_streams()
        inputs = self._inputs()
        self._heap.begin(stream)
        how = Run((stream, *self._aux), self._heap, launch, watch)
        self._found = self._runner.run(inputs, lambda name, kind: self._addresses.placed(name, kind, name in self._open, stream), how)

    @exclusive
    def execute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on host arrays: sets shapes, copies in, runs, copies out. For tests and scripts: it waits for the device, and uses
        memory of its own in place of addresses that were set. Arrays have the model's shapes, whatever format the tensors have on the device.

        Raises:
            ValueError: an input is missing, unknown, or of another data type or shape.
        """
        network = self.engine.network
        arrays = {}
        for name in network.inputs:
            if name not in inputs:
                raise ValueError(f"input {name!r} is missing")
            arrays[name] = np.asarray(inputs[name], order="C")
            wanted = network.tensors[name].dtype
            if arrays[name].dtype != wanted.numpy:
                raise ValueError(f"input {name!r} is {arrays[name].dtype}, the engine wants {wanted.value}")
            self.set_input_shape(name, arrays[name].shape)
        if unknown := sorted(set(inputs) - set(network.inputs)):
            raise ValueError(f"the engine has no input {unknown[0]!r}, it has {', '.join(network.inputs)}")
        self.use_own_memory()
        if self._stream is None:
            self._stream = self.device.stream(concurrent=self.engine.num_aux_streams > 0)
        for name, array in arrays.items():
            self.write_tensor(name, array)
        self.execute_async_v3(self._stream)
        self._stream.synchronize()
        return {name: self.read_tensor(name) for name in network.outputs}

    @exclusive
    def execute_v2(self, bindings: Sequence[Any]) -> bool:
        """One inference that has ended on return; ``bindings`` are the addresses (or tensors) of inputs, then outputs, in the engine's order.

        Raises:
            as :meth:`set_tensor_address` and :meth:`execute_async_v3`.
        """
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        if len(bindings) != len(names):
            raise ValueError(f"{len(bindings)} bindings given, the engine has {len(names)} tensors: {', '.join(names)}")
        for name, value in zip(names, bindings, strict=True):
            self.set_tensor_address(name, value)
        if self._stream is None:
            self._stream = self.device.stream(concurrent=self.engine.num_aux_streams > 0)
        self.execute_async_v3(self._stream)
        self._stream.synchronize()
        return True

    @exclusive
    def use_own_memory(self, managed: bool = False) -> None:
        """Give every input and output memory of the context's own, large enough for the present shapes."""
        for name in dict.fromkeys((*self.engine.network.inputs, *self.engine.network.outputs)):
            if name in self._open:
                self._addresses.forget(name)  # placed when its size is known
                continue
            self.set_tensor_address(name, self._addresses.own(name, tensor_bytes(self._type(name)), managed))

    def read_tensor(self, name: str) -> np.ndarray:
        """A copy of input or output ``name`` as it is now on the device, row-major in the model's shape; wait for the stream before."""
        if name in self._open and name not in self._found:
            raise ValueError(f"tensor {name!r}: its shape is known after an inference")
        kind = self._found[name].type if name in self._found else self._type(name)
        array = np.empty(_shape(kind), kind.dtype.numpy)
        self.device.download(array, self.get_tensor_address(name))
        layout = self.engine.network.formats.get(name)
        return array if layout is None else layout.unpack(array)

    def write_tensor(self, name: str, array: np.ndarray) -> None:
        """Copy ``array``, which has the model's shape, to input ``name`` on the device."""
        self.device.upload(self._addresses[name], self.packed(name, array))

    def packed(self, name: str, array: np.ndarray) -> np.ndarray:
        """``array`` of input or output ``name`` as it lies in memory."""
        layout = self.engine.network.formats.get(name)
        return np.ascontiguousarray(array) if layout is None else layout.pack(array)

    def memory_shape(self, name: str) -> tuple[int, ...]:
        """The shape of :meth:`packed` arrays of input or output ``name``: that of :meth:`get_tensor_shape` unless its format is another."""
        shape, layout = self.get_tensor_shape(name), self.engine.network.formats.get(name)
        return shape if layout is None else tuple(map(int, layout.in_memory(shape)))  # type: ignore[arg-type]

    # -----------------------------------------------------------------------------------------------------------------

    def release_graph(self) -> None:
        """Say that graphs which captured this context will not be launched any more: it may be changed again."""
        self._captured = False

    # -----------------------------------------------------------------------------------------------------------------

    def _may_change(self) -> None:
        if self._captured:
            raise EngineError(
                "this context is in a captured CUDA graph, which holds its shapes and addresses: use another context of the engine "
                "(they share its weights), or call release_graph() once the graph is never launched again"
            )

    def _type(self, name: str) -> TensorType:
        if self._runner is None:
            return self._resolve().types[name]
        return bind_type(self.engine.network.tensors[name], sizes_of(self.engine.network, self._shapes))

    def _inputs(self) -> dict[str, Tensor]:
        """The inputs where the caller said that they are."""
        network, found = self.engine.network, {}
        for name in network.inputs:
            if name not in self._shapes:
                raise ValueError(f"input {name!r} has no shape: call set_input_shape")
            kind = TensorType(network.tensors[name].dtype, self.memory_shape(name))
            found[name] = Tensor(self._addresses.checked(name, kind), kind)
        return found

    def _changed(self) -> None:
        self._found = {}
        self._actions = None
        self.revision += 1

    def state(self) -> tuple[object, ...]:
        """All that a captured graph depends on: profile, shapes, addresses, arena. Equal states run the same work on the same memory."""
        return self.profile, tuple(sorted(self._shapes.items())), self._addresses.items(), self._arena.address

    def _as_stream(self, stream: Any) -> Stream:
        if isinstance(stream, Stream):
            return stream
        handle = stream_handle(stream)
        if handle not in self._external:
            self._external[handle] = self.device.external_stream(handle)
        return self._external[handle]

    def _reserve(self) -> None:
        """Size the arena for the largest shapes."""
        numbers = range(len(self.engine.profiles)) if self._allocation == "static" else (self.profile,)
        self._grow(max(self._largest(number).memory.size for number in numbers))

    def _largest(self, profile: int) -> Resolution:
        ranges = self.engine.profiles[profile]
        return self._lookup({name: ranges[name].max for name in self.engine.network.inputs}, profile)

    def _grow(self, size: int) -> None:
        if self._arena.hold(size, lambda: self.engine.device_memory_size):
            self._programs = []

    def _lookup(self, shapes: Mapping[str, tuple[int, ...]], profile: int) -> Resolution:
        return self.loaded.resolution(profile, shapes)

    def _resolve(self) -> Resolution:
        if self._resolution is None:
            missing = [name for name in self.engine.network.inputs if name not in self._shapes]
            if missing:
                raise ValueError(f"input {missing[0]!r} has no shape: call set_input_shape")
            self._resolution = self._lookup(self._shapes, self.profile)
            self._programs = []
        return self._resolution

    def _layers_by_io(self) -> dict[str, set[int]]:
        """Per input and output, the layers whose programs hold its address."""
        network, places = self.engine.network, self.loaded.outline.places
        touched: dict[str, set[int]] = {}
        for number, layer in enumerate(network.layers):
            for name in (*layer.inputs, *layer.outputs):
                touched.setdefault(places[name].root, set()).add(number)
        return touched

    def _forget(self, name: str) -> None:
        """Programs that hold the address of ``name`` must be bound again."""
        self._changed()
        touched = self._touched.get(name, set())
        if self._resolution is not None and self._programs:
            for index, step in enumerate(self._resolution.steps):
                if step.layer in touched:
                    self._programs[index] = None

    def _bind(self) -> None:
        resolution = self._resolve()
        for name in self._addresses.allocators:
            address = self._addresses.allocated(name, resolution.types[name], self._stream or self.device.stream())
            if self._addresses.move(name, address):
                self._forget(name)
        self._grow(resolution.memory.size)
        if not self._programs:
            self._programs = [None] * len(resolution.steps)
        programs = [
            bound or bind_step(self.loaded, resolution, step, self._arena.address, self._around(resolution))
            for bound, step in zip(self._programs, resolution.steps, strict=True)
        ]
        self._programs = list(programs)
        constants = [name for name in self.engine.network.outputs if name in self.loaded.outline.constants]
        copies: list[Action] = [(self._constant_output(resolution, name).run, 0, -1) for name in constants]
        self._actions = copies + schedule(self.device, resolution.steps, programs)
        self._provide_streams()
        self.binding_version += 1

    def _provide_streams(self) -> None:
        while len(self._aux) < self.engine.num_aux_streams:
            self._aux.append(self.device.stream(concurrent=True))

    def _around(self, resolution: Resolution) -> Callable[[str], int | None]:
        """The addresses of inputs and outputs, checked."""
        network, constants = self.engine.network, self.loaded.outline.constants
        placed = {*network.inputs, *network.outputs} - constants

        def address(root: str) -> int | None:
            return self._addresses.checked(root, resolution.types[root]) if root in placed else None

        return address

    def _tensor(self, resolution: Resolution, name: str) -> Tensor:
        return locate(self.loaded, resolution, name, self._arena.address, self._around(resolution))

    def _constant_output(self, resolution: Resolution, name: str) -> Program:
        kind = resolution.types[name]
        plan = Plan((Copy(Buffer("input"), Buffer("output"), tensor_bytes(kind)),))
        binding = Binding((self.loaded.weights[name],), (Tensor(self._addresses.checked(name, kind), kind),))
        return self.device.program(plan, binding, self.loaded.modules)


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
