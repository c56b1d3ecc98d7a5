"""Guards: lines of the kit that prevent a fault, each with the test that fails once the line is gone.

python tests/tools/guards.py            # removes each guard in a copy of the kit and runs its test
python tests/tools/guards.py lock       # only guards whose name contains "lock"
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kit import ROOT, copy_repository


@dataclass(frozen=True)
class Guard:
    """`test` must fail once `text`, which `file` holds exactly once, is replaced by `instead`."""

    name: str
    file: str
    text: str
    instead: str
    test: str


R, P, H = "tests/proofs/test_reliability.py", "tests/proofs/test_processes.py", "tests/proofs/test_hostile.py"
D = "tests/proofs/test_distributed.py"
X = "tests/folder/test_damage.py"
E, S = "tests/search/test_engines.py", "tests/search/test_search.py"
C, B = "tests/unit/test_cache.py", "tests/unit/test_build_dataset.py"
T, M = "tests/folder/test_trust.py", "tests/folder/test_trained_code.py"
IDENTITY = "tests/folder/test_identity.py"
GUARDS = [
    Guard("records of one folder", "folder/identity.py", "    if ids != own and ids not in meta.get(ADOPTS, []):", "    if False:",
          f"{IDENTITY}::test_records_of_another_folder_are_not_taken_up"),
    Guard("results without state", "folder/records.py", "    if not (results or gone):", "    if True:",
          f"{IDENTITY}::test_results_without_state_are_not_overwritten"),
    Guard("a copy has its own scratch files", "engine/session.py", "        if plan.is_copy:\n", "        if False:\n",
          f"{IDENTITY}::test_a_copy_does_not_share_the_scratch_disk"),
    Guard("scratch names are random", "folder/scratch.py", "-{secrets.token_hex(4)}", "", f"{IDENTITY}::test_a_new_folder_under_an_old_name_has_its_own_scratch"),
    Guard("the scratch target is locked", "folder/folder.py", "        if target and target not in self._scratch_locks:", "        if False:",
          f"{IDENTITY}::test_two_folders_that_link_to_one_place_do_not_train_at_the_same_time"),
    Guard("logs of hard-linked copies", "folder/console.py", "path.stat().st_nlink > 1", "False", f"{IDENTITY}::test_a_copy_by_hard_links_leaves_the_original_alone"),
    Guard("the folder that is locked is written", "folder/folder.py", "return self._held is None or self._held == inode_of(self.path)", "return True",
          f"{IDENTITY}::test_a_folder_renamed_while_it_trains_is_not_written_under_its_old_name"),
    Guard("a half-moved attempt is finished", "folder/aside.py", "    target = find_half_moved(folder)\n", "    target = None\n",
          f"{IDENTITY}::test_a_restart_that_is_killed_keeps_the_old_attempt_in_one_piece"),
    Guard("tables of another hand", "report/ownership.py", "    if is_ours(path):", "    if True:", f"{IDENTITY}::test_tables_and_pages_of_another_hand_are_left_alone"),
    Guard("temporary file, then replace", "utils.py", "        os.replace(temporary, path)\n",
          "        os.write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), content)\n", f"{R}::test_a_crash_at_every_file_system_call_of_a_save_loses_nothing"),
    Guard("sync before replace", "utils.py", "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n        # put it in the place of the old file\n        os.chmod",
          "            pass\n        finally:\n            os.close(descriptor)\n        # put it in the place of the old file\n        os.chmod",
          f"{R}::test_the_calls_of_a_save_are_in_the_order_that_survives_power_loss"),
    Guard("sync the folder", "utils.py", "        sync_folder(path.parent)\n", "        pass\n",
          f"{R}::test_the_calls_of_a_save_are_in_the_order_that_survives_power_loss"),
    Guard("free bytes are named", "utils.py", "if error.errno in (errno.ENOSPC, errno.EDQUOT):", "if False:",
          f"{R}::test_an_error_at_every_file_system_call_of_a_save_loses_nothing"),
    Guard("state files are never overwritten", "engine/checkpoint.py", "while (self.path / name).exists():", "while False:",
          f"{R}::test_a_crash_at_every_file_system_call_of_a_save_loses_nothing"),
    Guard("old states go after the manifest", "engine/checkpoint.py", "        write_atomic(self.path / MANIFEST, to_json(record), self.check)\n        named",
          "        named", f"{R}::test_a_crash_at_every_file_system_call_of_a_save_loses_nothing"),
    Guard("hash of the state", "engine/checkpoint.py", 'if hashlib.sha256(data).hexdigest() != entry["sha256"]:', "if False:",
          f"{R}::test_every_flipped_bit_is_found"),
    Guard("digest of the manifest", "folder/manifest.py", "    if not is_whole:", "    if False:",
          f"{R}::test_every_flipped_bit_is_found"),
    Guard("digest of the weights", "engine/checkpoint.py", "if with_digest(metadata, tensors) != metadata:", "if False:",
          f"{R}::test_every_flipped_bit_is_found"),
    Guard("the generation before", "engine/checkpoint.py", '            if not manifest.get("previous"):\n                raise\n',
          "            raise\n", f"{R}::test_the_generation_before_is_used_and_said"),
    Guard("of a copy, the file that was written is named", "utils.py", "        written = error.filename2 or error.filename", "        written = error.filename",
          f"{R}::test_a_copy_that_does_not_fit_names_the_file_that_was_written"),
    Guard("weights are those of the run", "folder/locate.py", "    if changed:\n        reason", "    if False:\n        reason",
          f"{X}::test_weights_of_another_experiment_are_not_measured_as_ones_own"),
    Guard("changed results are written again", "engine/use/repair.py", "        if find_changed_results(folder):\n", "        if False:\n",
          f"{X}::test_weights_of_another_experiment_are_not_measured_as_ones_own"),
    Guard("a missing record is damage", "folder/records.py", "    if not (folder / RESOLVED).exists():\n        raise UserError(f", "    if False:\n        raise UserError(f",
          f"{X}::test_a_record_that_is_missing_or_cut_off_names_the_way_out"),
    Guard("the state was there", "engine/session.py", "    if not checkpoints.manifest():  # it was", "    if False:  # it was",
          f"{X}::test_a_state_that_goes_while_a_start_gets_ready_is_said"),
    Guard("errors of the writer", "engine/checkpoint.py", "            job.result()\n", "            pass\n",
          f"{R}::test_a_full_disk_for_real"),
    Guard("state before derived files", "engine/session.py", "        checkpoints.commit(self.state,", "        (lambda *a, **k: None)(self.state,",
          f"{R}::test_a_crash_at_every_file_system_call_of_a_save_loses_nothing"),
    Guard("derived again at a resume", "engine/use/repair.py", "        return tables and metrics", "        return True or tables and metrics",
          f"{R}::test_derived_files_come_back_from_the_checkpoint"),
    Guard("finite loss", "engine/loop.py", 'if not math.isfinite(means["loss"]):\n        step', 'if False:\n        step',
          f"{R}::test_a_non_finite_loss_names_step_rate_and_files"),
    Guard("finite weights", "engine/session.py", "        check_finite(self.state)\n", "", f"{R}::test_a_state_that_is_not_finite_is_not_kept"),
    Guard("counter-based dropout", "engine/loop.py", '    seed_device(next(run.net.parameters()).device, key64(run.params.seed, "step", state.step, run.world.rank))',
          "    pass", f"{R}::test_killed_at_random_instants_it_comes_to_the_same_bytes"),
    Guard("sums are in the state", "engine/state.py", "for name in SUMS:", 'for name in ("recent",):',
          f"{R}::test_killed_at_random_instants_it_comes_to_the_same_bytes"),
    Guard("average is in the state", "engine/state.py", '            self.ema.module.load_state_dict(saved["ema"])', "            pass",
          f"{R}::test_killed_at_random_instants_it_comes_to_the_same_bytes"),
    Guard("signals are caught", "engine/control.py", "self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}",
          "self.handlers = {}", f"{R}::test_a_signal_saves_and_leaves_nobody_behind"),
    Guard("workers ignore signals", "model/images/workers.py", "signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)",
          "signal.pthread_sigmask(signal.SIG_BLOCK, ())", f"{P}::test_a_signal_to_the_workers_changes_nothing"),
    Guard("lock", "folder/lock.py", "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "        pass\n",
          f"{P}::test_of_20_simultaneous_starts_one_trains"),
    Guard("lock of params.json", "folder/lock.py", "        return _take(file, os.O_RDWR)  # NFS wants it writable\n", "        raise\n",
          f"{P}::test_where_folders_cannot_be_locked_params_json_is"),
    Guard("forked children let the lock go", "folder/lock.py", "os.register_at_fork(after_in_child=_let_go)\n", "",
          f"{P}::test_a_child_that_outlives_its_parent_holds_no_lock"),
    Guard("the latest attempt has the folder", "search/engines/ray_task.py", "(stop.exists() or not claim.is_ours())", "stop.exists()",
          f"{E}::test_the_latest_attempt_trains_and_the_one_before_it_saves_first"),
    Guard("the silent are overtaken", "search/engines/ray_task.py", "elif time.monotonic() - since > SILENCE:", "elif False:",
          f"{E}::test_a_silent_attempt_is_waited_for_and_then_overtaken"),
    Guard("a task dies with its worker", "search/engines/ray_task.py", "preexec_fn=die", "preexec_fn=None",
          f"{E}::test_who_runs_a_task_takes_it_along"),
    Guard("jobs are found again", "search/engines/slurm.py", "if name in known and not known[name].has_ended:", "if False:",
          f"{E}::test_what_was_submitted_is_found_again_and_stopped_jobs_save"),
    Guard("workers die with their parent", "utils.py", "        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG of linux/prctl.h\n", "",
          f"{P}::test_a_worker_that_hangs_dies_with_its_parent"),
    Guard("a dead worker's file is named", "model/images/workers.py", "            self.current[worker.id % len(self.current)] = position", "            pass",
          f"{P}::test_a_worker_that_dies_names_the_file"),
    Guard("worker timeout", "model/images/workers.py", "        timeout=WORKER_SECONDS,\n", "", f"{P}::test_a_worker_that_hangs_names_the_file"),
    Guard("shared memory", "model/images/fetch.py", "if number and workers.free_shared_memory() < needed:", "if False:",
          f"{P}::test_little_shared_memory_means_no_workers"),
    Guard("no folder is made again", "engine/checkpoint.py", "self.path.mkdir(exist_ok=True)", "self.path.mkdir(parents=True, exist_ok=True)",
          f"{P}::test_a_folder_that_is_gone_while_it_trains_is_not_made_again"),
    Guard("out of memory is no bug", "utils.py", "    return (\n        isinstance(error, MemoryError)",
          "    return False and (\n        isinstance(error, MemoryError)", f"{P}::test_too_little_memory_is_said_with_the_batch_size"),
    Guard("closed console", "folder/console.py", "        except (BrokenPipeError, ValueError, OSError):\n            self.stream =",
          "        except ZeroDivisionError:\n            self.stream =", f"{P}::test_a_closed_console_stops_nothing"),
    Guard("weights only, of states", "engine/checkpoint.py", 'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)',
          f"{H}::test_no_payload_runs_wherever_weights_or_states_are_read"),
    Guard("weights only, of weights", "utils.py", 'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)',
          f"{H}::test_no_payload_runs_wherever_weights_or_states_are_read"),
    Guard("a worker ends at its parent's word", "model/images/workers.py", "        threading.Thread(target=_end_when_told, args=(parent,), daemon=True).start()\n",
          "        pass\n", f"{P}::test_a_worker_that_hangs_ends_when_its_parent_does"),
    Guard("not writable is said first", "train.py", "            folder.check_writable()\n", "",
          f"{P}::test_what_may_not_be_written_is_said_before_anything_is_loaded"),
    Guard("closed streams are opened", "utils.py", "    _open_streams()\n    sys.exit", "    sys.exit", f"{P}::test_a_closed_console_stops_nothing"),
    Guard("ranks agree", "engine/control.py", "self.answer = self.world.agree(wish)",
          "self.answer = wish", f"{D}::test_a_signal_to_one_rank_saves_the_run_of_all"),
    Guard("a lost rank is said", "engine/failures.py", "if run.world.is_lost(error):", "if False:",
          f"{D}::test_when_a_rank_dies_the_others_say_so_and_the_same_command_continues"),
    Guard("a damaged best state is not fatal", "engine/use/repair.py", "    except UserError as damaged:\n        if entry", "    except ZeroDivisionError as damaged:\n        if entry",
          f"{R}::test_of_a_damaged_best_state_the_exported_weights_are_left"),
    Guard("types of records", "folder/folder.py", "        wrong = [key for key, kind in kinds.items() if not isinstance(value.get(key), kind)]\n",
          "        wrong = []\n", f"{H}::test_json_of_the_right_shape_with_wrong_types_is_no_traceback"),
    Guard("errors of archives", "model/images/build/archives.py", "    except Exception as error:  # of damaged,", "    except OSError as error:  # of damaged,",
          f"{H}::test_an_archive_that_cannot_be_read_is_one_line"),
    Guard("a missing rank is not waited for for ever", "engine/distributed.py", "        if silent and waited > limit:", "        if False:",
          f"{D}::test_a_rank_that_never_comes_is_named_and_waited_for_no_longer_than_said"),
    Guard("a rank lost while building is said", "engine/distributed.py", "        with self.explained():\n            dist.all_gather_object", "        if True:\n            dist.all_gather_object",
          f"{D}::test_a_rank_that_is_refused_ends_the_others"),
    Guard("a terminal gets no escapes", "utils.py", "return text.translate(_CONTROLS)", "return text", "tests/unit/test_hostile_text.py::test_a_terminal_is_shown_escapes_as_text"),
    Guard("a spreadsheet gets no formulas", "folder/csv_text.py", "isinstance(value, str) and FORMULA.match(value) else value", "False else value",
          "tests/unit/test_hostile_text.py::test_a_spreadsheet_is_given_no_formula"),
    Guard("weights are finite", "engine/use/inference.py", "    check_finite_weights(path, tensors)\n", "", "tests/unit/test_hostile_text.py::test_weights_that_are_not_finite_are_refused"),
    Guard("too few file handles are said", "utils.py", "error.errno in (errno.EMFILE, errno.ENFILE)", "False", "tests/unit/test_hostile_text.py::test_too_many_open_files_says_what_to_do"),
    Guard("a full disk under tensorboard has no traceback", "engine/observers.py", "            threading.excepthook = _hide_writer_error\n", "",
          "tests/unit/test_observers.py::test_a_full_disk_under_tensorboard_is_one_line"),
    Guard("arithmetic is tried out", "engine/precision.py", '        kind["arithmetic"] = ', '        kind["unknown"] = ',
          f"{P}::test_other_arithmetic_that_no_query_shows_is_refused_until_accepted"),
    Guard("arithmetic on numbers of many sizes", "engine/precision.py", " << (5 * count % 13)", "", "tests/unit/test_precision.py::test_arithmetic_shows_emulated_bf16"),
    Guard("arithmetic is compared in one precision alone", "engine/plan.py", ' and plan.pinned.get("choice") == choice', "",
          "tests/folder/test_plan.py::test_arithmetic_is_compared_where_both_know_it"),
    Guard("a stated schedule stays stated", "engine/schedule.py", "return [start, end, AS_STATED] if params.lr_schedule else", "return",
          "tests/folder/test_train.py::test_an_extension_follows_a_stated_schedule"),
    Guard("nobody leaves while numbers travel", "engine/distributed.py", "                    work.wait(timedelta(seconds=5))\n", "                    pass\n",
          f"{D}::test_nobody_leaves_while_numbers_travel"),
    Guard("each start has a name", "engine/distributed.py", "    while silent:\n", "    while len(silent) > size:\n",
          f"{D}::test_each_start_of_the_ranks_has_a_name_of_its_own"),
    Guard("gradients travel once", "engine/distributed.py", "nullcontext() if is_last or self.size == 1", "nullcontext() if True",
          f"{D}::test_gradients_travel_once_per_step"),
    Guard("padding is not counted", "model/data_loader.py", "            weights[micro_batch.num_real :] = 0\n", "            pass\n",
          f"{D}::test_metrics_do_not_depend_on_the_number_of_processes"),
    Guard("processes share the cores", "engine/precision.py", "num_cores() // num_local", "num_cores()",
          f"{D}::test_processes_of_a_machine_share_its_cores"),
    Guard("no value is read in a step", "engine/loop.py", "    if state.ema:\n        state.ema.update(",
          "    float(loss)\n    if state.ema:\n        state.ema.update(", "tests/unit/test_loop.py::test_an_epoch_waits_as_often_however_many_steps_it_has"),
    Guard("the same views everywhere", "engine/checkpoint.py", '{"tta": resolved["tta"]} if', "{} if",
          "tests/unit/test_recipes.py::test_training_evaluation_and_prediction_use_the_same_views"),
    Guard("the loaded checkpoint is freed", "train.py", "    remarks += session.restore(plan, state, saved, world)\n",
          "    remarks += session.restore(plan, state, saved, world)\n    state.kept = saved\n",
          "tests/folder/test_train.py::test_the_loaded_checkpoint_is_freed_before_training_goes_on"),
    Guard("prepare leaves the folder alone", "train.py", "    if plan.request.prepare:\n        world.leave()", "    if False:\n        world.leave()",
          "tests/unit/test_recipes.py::test_prepare_builds_the_cache_and_leaves_the_folder_alone"),
    Guard("every progressive size is tried", "model/net.py", "    for side in list_training_sizes(params, im_sz):", "    for side in [im_sz]:",
          "tests/unit/test_net.py::test_progressive_sizes_that_the_net_cannot_take_are_one_line"),
    Guard("copies of an image are in one fold", "model/images/folds.py",
          "    is_new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)\n", "",
          "tests/unit/test_folds.py::test_every_image_validates_once_and_nothing_leaks"),
    Guard("all folds are of the same data", "model/images/source.py", '        if self.fold:\n            return self.fold["data"]\n', "",
          "tests/unit/test_folds.py::test_all_folds_are_of_the_same_data"),
    Guard("what a fold evaluates is exact", "model/images/source.py", '    if source.jpegs and split == "train":', "    if source.jpegs:",
          "tests/unit/test_folds.py::test_a_lossy_cache_is_for_training_alone"),
    Guard("a class is in two folds at least", "model/images/folds.py", "        if counts.max() == counts.sum():", "        if False:",
          "tests/unit/test_folds.py::test_a_class_that_cannot_be_in_two_parts"),
    Guard("folds are dealt before children are written", "search/opening.py",
          "    assignment = assign_folds(params, data) if assign_folds else None", "    assignment = None",
          "tests/unit/test_folds.py::test_a_search_shares_and_records_the_parts"),
    Guard("layers are frozen in train mode", "engine/loop.py", "    run.net.train()\n    run.before_epoch(state.epoch)\n",
          "    run.before_epoch(state.epoch)\n    run.net.train()\n",
          "tests/unit/test_loop.py::test_before_epoch_is_called_in_train_mode_at_the_start_of_every_epoch"),
    Guard("what is frozen stays so in a range test", "engine/use/find_lr.py", "begin_epoch(0)", "begin_epoch(epoch)",
          "tests/folder/test_find_lr.py::test_what_is_frozen_at_first_stays_so"),
    Guard("a range test keeps the groups' proportions", "engine/use/find_lr.py",
          "    initial = 1.0 if run.params.lr_schedule else peak_rate(run.params)", "    initial = 1.0",
          "tests/folder/test_find_lr.py::test_every_group_has_its_share_of_the_rate"),
    Guard("a range test looks at a run as it began", "engine/plan.py", "holds_run=has_run",
          "holds_run=False", "tests/folder/test_find_lr.py::test_a_done_folder_stays_done"),
    Guard("a range test asks for no other work", "engine/plan.py", '    if wrong or given.code == "folder":', "    if False:",
          "tests/folder/test_find_lr.py::test_wrong_flags_are_one_line"),
    Guard("a curve that does not fall is said", "engine/use/find_lr.py",
          "    if first - lowest > max(HARDLY * abs(first), plateau.std()):", "    if True:",
          "tests/folder/test_find_lr.py::test_a_net_that_hardly_learns_is_said"),
    Guard("a signal does not break the end off", "engine/session.py", "        try:\n            self._leave(error)\n        finally:\n            self.control.close()",
          "        self.control.close()\n        if True:\n            self._leave(error)",
          f"{R}::test_a_signal_after_the_last_epoch_does_not_break_the_end_off"),
    Guard("one search at a time", "search_hyperparams.py", "    with folder.locked():\n", "    if True:\n", f"{S}::test_two_searches_of_one_parent"),
    Guard("children save when the search ends", "search/engines/local.py", "            os.kill(pid, signal.SIGTERM)\n        while",
          "            os.kill(pid, signal.SIGKILL)\n        while", f"{S}::test_two_searches_of_one_parent"),
    Guard("a child's own files are the frozen ones", "search/children.py", 'f"../{CODE}/experiment/")', '"../")',
          f"{S}::test_the_code_of_the_beginning_is_what_runs"),
    Guard("the pool runs the frozen code", "search/engines/local.py", 'str(code / "search_hyperparams.py"), "--serve"]', 'sys.argv[0], "--serve"]',
          f"{S}::test_the_code_of_the_beginning_is_what_runs"),
    Guard("edited children stay", "search/children.py", "if child.state == \"new\" and written == digest(current):", 'if child.state == "new":',
          f"{S}::test_dry_run_writes_the_children_and_edited_and_added_ones_are_respected"),
    Guard("children that never began follow", "search/children.py", "if child.state == \"new\" and written == digest(current):", "if False:",
          f"{S}::test_dry_run_writes_the_children_and_edited_and_added_ones_are_respected"),
    Guard("done children are known", "search/children.py", '        if manifest.get("done"):\n            progress.state = "done"', '        if manifest.get("done"):\n            progress.state = "new"',
          f"{S}::test_again_it_trains_nothing_and_a_larger_space_only_what_is_missing"),
    Guard("a failed child is not tried for ever", "search/scheduler.py", "        return self.futile[child.name] <= RETRIES", "        return True",
          f"{S}::test_a_failing_child_says_why_and_the_others_go_on"),
    Guard("fail_fast", "search/scheduler.py", '(fail_fast and event.kind == "failed")', "False", f"{S}::test_fail_fast_starts_no_more"),
    Guard("a pause at a rung", "engine/session.py", "            raise Paused(event.epoch, self.state.step)", "            pass",
          f"{S}::test_asha_goes_on_from_the_checkpoint_and_prunes_the_rest"),
    Guard("epochs of the whole search", "search/selection.py", "        spent = sum(len(child.progress.scores) for child in self.children.by_name.values())",
          "        spent = 0", f"{S}::test_budgets_are_of_the_whole_search"),
    Guard("minutes of the whole search", "search/scheduler.py", "            if self._is_late() and not self.is_ending:", "            if False:", f"{S}::test_budgets_are_of_the_whole_search"),
    Guard("a metric that there is not is said at once", "search/validation.py", "    if metric not in known and", "    if False and",
          f"{S}::test_what_does_not_go_together_is_one_line"),
    Guard("added children are points of TPE", "search/selection.py", "groups.setdefault(number if number >= 0 else -1 - place, [])", "groups.setdefault(number, [])",
          f"{S}::test_children_that_were_added_by_hand_are_points_of_tpe_too"),
    Guard("what is known of a trial has its kinds", "search/selection.py", "child.folder.record(TRIAL, **kinds)", "child.folder.record(TRIAL)",
          f"{S}::test_tpe_asks_for_as_many_points_as_wanted_in_all"),
    Guard("a grid under ASHA is shuffled", "search/selection.py", "if self.search.pruner in RUNG_PRUNERS else points\n", "if False else points\n",
          f"{S}::test_a_grid_under_asha_is_begun_in_a_shuffled_order"),
    Guard("children keep the order of the search", "search/children.py", "            self.by_name[child.name] = self.by_name.pop(child.name)", "            pass",
          f"{S}::test_dry_run_writes_the_children_and_edited_and_added_ones_are_respected"),
    Guard("the pool leaves quietly", "search/engines/local.py", "        gc.unfreeze()", "        pass", f"{S}::test_one_key_gives_the_folders_of_the_seed_template"),
    Guard("a busy child is waited for", "search/scheduler.py", "        if end.code == EXIT_BUSY:", "        if False:", f"{S}::test_a_child_that_somebody_else_trains_is_waited_for"),
    Guard("pixels are compared before they are used", "model/images/cached/intact.py", "        is_bad = (computed != self.expected[blocks]).any(axis=1)\n",
          "        is_bad = np.zeros(len(blocks), bool)\n", f"{C}::test_a_flipped_pixel_is_never_used"),
    Guard("batches are cut from intact images alone", "model/images/fetch.py", "rows is not None and self._are_intact(rows):", "rows is not None:",
          f"{C}::test_batches_are_the_same_whatever_happens_to_the_cache"),
    Guard("a copy in memory is compared", "model/images/cache.py", "    if not loaded.are_intact(np.arange(len(copy))):\n", "    if False:\n",
          f"{C}::test_a_flipped_pixel_means_a_new_cache_in_memory"),
    Guard("a damaged image comes from the same content", "model/images/cache.py", "    if digest_of(data) != digests[row].tobytes():\n", "    if False:\n",
          f"{C}::test_a_damaged_image_whose_file_has_changed_is_an_error"),
    Guard("small files of a cache are compared", "model/images/cached/files.py", "    if digest is not None and hashlib.sha256(data).hexdigest() != digest:\n", "    if False:\n",
          f"{C}::test_a_flipped_bit_in_a_small_file_is_found"),
    Guard("the manifest of a cache is sealed", "model/images/cached/files.py", 'is_sealed = manifest.get("seal") == _seal(manifest)', 'is_sealed = "seal" in manifest',
          f"{C}::test_a_flipped_bit_in_a_small_file_is_found"),
    Guard("a manifest belongs to its cache", "model/images/cached/files.py", ' or manifest["cache"] != files.stem:', ":",
          f"{C}::test_a_manifest_of_another_cache_is_refused"),
    Guard("the header of a cache is exact", "model/images/cached/files.py", "        if file.read(len(header)) != header:\n", "        file.read(len(header))\n        if False:\n",
          f"{C}::test_what_is_not_exactly_a_cache_is_built_again"),
    Guard("a damaged cache is given up", "model/images/cached/files.py", "            os.unlink(files.manifest)\n", "            pass\n", f"{C}::test_a_flipped_pixel_is_never_used"),
    Guard("change times are compared", "model/images/cache.py", "    if not is_changed.any():\n", "    if True:\n",
          f"{C}::test_contents_that_change_places_with_sizes_and_times_restored"),
    Guard("a change time alone means no new cache", "model/images/cache.py", "            return _open(files, job, form, hashes=True)\n",
          "            return _open(files, job, form, hashes=False)\n", f"{C}::test_a_change_time_alone_leads_to_hashing_of_that_file"),
    Guard("files that change during a run are noticed", "model/images/source.py", "                self._check_unchanged(path, position)\n", "",
          f"{C}::test_without_a_cache_a_file_that_changes_during_a_run_is_an_error"),
    Guard("nobody waits for a stopped builder", "model/images/cached/lock.py", "        elif now - self.stopped_since > STOPPED_PATIENCE:\n", "        elif False:\n",
          f"{C}::test_nobody_waits_for_a_process_that_is_stopped"),
    Guard("waiting says for whom", "model/images/cached/lock.py", "            say(self._describe(builder))\n", "            pass\n",
          f"{C}::test_nobody_waits_for_a_process_that_makes_no_progress"),
    Guard("a fallback does not wait again", "model/images/cache.py", "chosen, files, patience=0)", "chosen, files, cache_lock.PATIENCE)",
          f"{C}::test_nobody_waits_for_a_process_that_is_stopped"),
    Guard("links become files", "model/images/build/write.py", "Path(os.path.realpath(item.source))", "item.source",
          f"{B}::test_links_of_a_source_become_files_and_dangling_ones_are_counted"),
    Guard("dangling links are no images", "model/images/build/folders.py", "            if size < 0:\n                continue\n", "",
          f"{B}::test_links_of_a_source_become_files_and_dangling_ones_are_counted"),
    Guard("bytes of a whole archive", "model/images/build/archives.py", "        if self.num_bytes > max(MAX_UNSUSPECTED, MAX_WHOLE_RATIO * self.compressed):\n", "        if False:\n",
          f"{B}::test_a_small_tar_that_unpacks_to_much_is_refused_and_the_way_out_works"),
    Guard("an archive fits the disk", "model/images/build/archives.py", "        if self.num_bytes > self.free:\n", "        if False:\n",
          f"{B}::test_what_does_not_fit_the_disk_is_refused_before_it_is_unpacked"),
    Guard("nothing leads out of an archive", "model/images/build/archives.py", '    if path.startswith("/") or path.split("/")[0] == "..":\n', "    if False:\n",
          f"{B}::test_a_tar_that_leads_outside_is_refused"),
    Guard("lost names are counted", "model/images/build/archives.py", "    if repeated:\n", "    if False:\n", f"{B}::test_names_that_occur_twice_are_counted"),
    Guard("links in a zip are no images", "model/images/build/archives.py", "            if _is_special(info):\n", "            if False:\n", f"{B}::test_links_in_a_zip_are_no_images"),
    Guard("killed builds are cleared away", "model/images/build/dataset.py", "    remove_leftovers(data_dir)\n", "",
          f"{B}::test_a_killed_build_is_cleared_away_by_the_next_one_and_a_running_one_is_not"),
    Guard("a running build is left alone", "model/images/build/dataset.py", "                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a build", "                pass  # a build",
          f"{B}::test_a_killed_build_is_cleared_away_by_the_next_one_and_a_running_one_is_not"),
    Guard("hard links are said", "model/images/build/dataset.py", "        if writer.num_links and Path(source).is_dir():", "        if False:",
          f"{B}::test_hard_links_are_said_and_copies_can_be_asked_for"),
    Guard("trust: named code runs as its copy", "folder/provenance.py", "        if not (copies / Path(name).name).is_file():\n", "        if False:\n",
          f"{T}::test_what_a_weights_file_names_runs_only_as_the_copy_that_is_trusted"),
    Guard("trust: of own files", "folder/provenance.py", """    check_trust(folder, f"its own {', '.join(names)}", consent, ROOT)\n    return localise""", "    return localise",
          f"{T}::test_what_a_weights_file_names_runs_only_as_the_copy_that_is_trusted"),
    Guard("trust: no links", "folder/trust.py", "            elif not stat.S_ISDIR(mode):\n", "            elif False:\n",
          f"{T}::test_what_a_weights_file_names_runs_only_as_the_copy_that_is_trusted"),
    Guard("trust: contents are sealed", "folder/trust.py", "= digest_file(path)\n", "= '0' * 64\n",
          f"{T}::test_a_file_that_changed_since_it_was_sealed_is_named"),
    Guard("trust: the seal is compared", "folder/trust.py", "    if any(hmac.compare_digest(mac.encode(", "    if any(mac or hmac.compare_digest(mac.encode(",
          f"{T}::test_a_damaged_or_forged_seal_is_none"),
    Guard("trust: the frozen kit", "folder/provenance.py", """    check_trust(folder, "its frozen code", consent)\n""", "",
          f"{T}::test_a_strangers_frozen_kit_does_not_run_untold"),
    Guard("trust: compiled kit", "folder/provenance.py", "            shutil.rmtree(path) if not path.is_symlink() else path.unlink()\n", "            pass\n",
          f"{T}::test_what_python_compiled_earlier_does_not_run_in_place_of_what_is_sealed"),
    Guard("trust: compiled net", "utils.py", ", loader=_SourceLoader(module_name, str(path))", "",
          f"{T}::test_what_python_compiled_earlier_does_not_run_in_place_of_what_is_sealed"),
    Guard("an accepted parameter acts", "engine/state.py", "            group.update(given)\n", "            pass\n", "tests/folder/test_train.py::test_an_accepted_parameter_acts_on_what_is_left"),
    Guard("what cannot change within a run", "engine/changes.py", "    if fixed:\n", "    if False:\n", "tests/folder/test_train.py::test_what_cannot_change_within_a_run_is_refused_whatever_is_accepted"),
    Guard("trust: a continued training", "engine/plan.py", """    check_own_files(plan.folder, plan.params.resolved(), plan.request)\n    remarks""", "    remarks",
          f"{T}::test_a_strangers_interrupted_folder_is_not_continued_untold"),
    Guard("trust: a range test", "engine/plan.py", "        check_own_files(plan.folder, plan.params.resolved(), given)\n", "        pass\n",
          f"{T}::test_a_strangers_interrupted_folder_is_not_continued_untold"),
    Guard("trust: the net beside a copy without its name", "folder/provenance.py", "    frozen = find_code(folder.path)\n", "    frozen = folder.path / CODE\n",
          f"{T}::test_my_seal_does_not_cover_another_net_beside_it"),
    Guard("trust: sealed before it has its name", "folder/provenance.py", "        seal(folder.path, unfinished)\n", "        pass\n",
          f"{T}::test_a_kill_while_the_copy_is_written_leaves_a_folder_that_asks_nothing"),
    Guard("trust: a search", "search/opening.py", "        check_frozen_code(folder.path, consent)\n", "        pass\n",
          f"{T}::test_a_strangers_search_does_not_run_untold_and_ones_own_asks_nothing"),
    Guard("trust: a private key", "folder/trust.py", "if stat.S_IMODE(status.st_mode) & 0o077 or", "if",
          f"{T}::test_a_key_that_others_can_read_or_that_is_none_is_one_line"),
    Guard("code: the tree has changed", "folder/provenance.py", "    changed = changed_files(folder, {}, INFERENCE_CODE)\n", "    changed: list[str] = []\n",
          f"{M}::test_where_the_tree_has_changed_the_folder_computes"),
    Guard("code: the look says which", "evaluate.py", """"code": request.code}\n        values""", """"code": "tree"}\n        values""",
          f"{M}::test_the_frozen_copy_gives_what_the_tree_gave_byte_for_byte"),
    Guard("sealed: other weights", "engine/use/looks.py", """    check_same_weights(folder.path, looks, weights.kit["digest"])\n""", "",
          f"{M}::test_a_sealed_split_is_looked_at_once_and_the_same_weights_get_the_recorded_metrics"),
    Guard("sealed: at the moment of the record", "engine/use/looks.py", "        if is_sealed:\n", "        if False:\n",
          f"{M}::test_two_looks_at_once_with_other_weights_are_not_both_taken"),
    Guard("sealed: after a kill", "evaluate.py", "all(path.exists() for path in files.values())", "True",
          f"{M}::test_a_kill_after_the_look_does_not_lock_its_owner_out"),
    Guard("sealed: the same images", "engine/use/looks.py", """        if look["data"] != facts["data"]:\n""", "        if False:\n",
          f"{M}::test_the_one_look_is_at_one_set_of_images"),
    Guard("sealed: pinned", "engine/plan.py", """    if plan.params.test != (pinned""", """    if False and plan.params.test != (pinned""",
          f"{M}::test_it_is_pinned_at_the_first_start"),
    Guard("looks: a lost list", "engine/use/looks.py", "    note_lost_looks(folder)\n", "", f"{M}::test_a_list_that_was_removed_counts_as_a_look"),
    Guard("looks: hard links", "engine/use/looks.py", "path.stat().st_nlink > 1:", "False:",
          f"{M}::test_a_copy_by_hard_links_leaves_the_list_of_the_original_alone"),
]  # fmt: skip


def find_mismatch(guard: Guard) -> str:
    """What in a guard no longer fits the kit: its text must be in its file once, and its test must exist."""
    path, (test_file, _, test) = ROOT / guard.file, guard.test.partition("::")
    if not path.exists():
        return f"{guard.file} does not exist"
    if (count := path.read_text().count(guard.text)) != 1:
        return f"its text is {count} times in {guard.file}, not once"
    if not (ROOT / test_file).exists() or f"def {test}(" not in (ROOT / test_file).read_text():
        return f"its test {guard.test} does not exist"
    return ""


def try_without(guard: Guard) -> str:
    """Run a guard's test in a copy of the kit without the guard: "" when the test fails, else what is wrong."""
    if wrong := find_mismatch(guard):
        return wrong
    with tempfile.TemporaryDirectory() as name:
        copy = copy_repository(Path(name) / "kit")
        path = copy / guard.file
        path.write_text(path.read_text().replace(guard.text, guard.instead))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        return "" if done.returncode == 1 else f"pytest ended with {done.returncode}\n{done.stdout[-1500:]}"


def main() -> None:
    chosen = [guard for guard in GUARDS if len(sys.argv) < 2 or sys.argv[1] in guard.name]
    num_alive = 0
    with ThreadPoolExecutor(2) as pool:
        for guard, wrong in zip(chosen, pool.map(try_without, chosen), strict=True):
            print(f"{'red  ' if not wrong else 'GREEN'} {guard.name}" + (f": {wrong}" if wrong else ""), flush=True)
            num_alive += bool(wrong)
    print(f"{len(chosen) - num_alive} of {len(chosen)} guards have a test that goes red without them")
    sys.exit(1 if num_alive else 0)


if __name__ == "__main__":
    main()
