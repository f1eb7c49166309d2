from tests.toys import SmallTrainer, small_trainer


def test_what_is_logged_while_the_parts_are_built_is_written_into_the_run(tmp_path, capsys):
    class Chatty(SmallTrainer):
        def build_optimizer(self, params):
            self.log("building the optimizer")
            return super().build_optimizer(params)

    trainer = small_trainer(tmp_path, cls=Chatty, console=True)
    for _ in range(2):
        trainer.train(1)
        log = (trainer.experiment_folder() / "logs.txt").read_text()
        assert log.count("building the optimizer") == 1
    assert capsys.readouterr().out.count("building the optimizer") == 2
