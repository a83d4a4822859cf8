"""The noise schedule against diffusers and by hand."""

import torch

from vibevoice_finetune.objective.noise import add_noise, cosine_tables, sample_latent, velocity


def test_tables_are_those_of_the_sampler():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    alpha, sigma = cosine_tables(1000)
    torch.testing.assert_close(alpha, scheduler.alpha_t, rtol=0, atol=0)
    torch.testing.assert_close(sigma, scheduler.sigma_t, rtol=0, atol=0)


def test_timestep_0_is_almost_clean_and_999_almost_noise():
    alpha, sigma = cosine_tables(1000)
    assert alpha[0] > 0.9999
    assert sigma[0] < 0.01
    assert alpha[999] < 0.01
    assert sigma[999] > 0.9999
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))


def test_velocity_and_noisy_give_the_clean_latent_back():
    clean, noise = torch.tensor([2.0]), torch.tensor([-1.0])
    alpha, sigma = torch.tensor([0.6]), torch.tensor([0.8])
    noisy = add_noise(clean, noise, alpha, sigma)  # 0.6 * 2 - 0.8 = 0.4
    target = velocity(clean, noise, alpha, sigma)  # -0.6 - 1.6 = -2.2
    torch.testing.assert_close(noisy, torch.tensor([0.4]))
    torch.testing.assert_close(target, torch.tensor([-2.2]))
    torch.testing.assert_close(alpha * noisy - sigma * target, clean)  # 0.24 + 1.76 = 2


def test_latent_by_hand():
    # (1 + 0.5 * 2 + 0.25) * 4 = 9
    found = sample_latent(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.5, torch.tensor(0.25), torch.tensor(4.0))
    assert found.item() == 9.0
