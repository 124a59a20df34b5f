"""The network with gradients: the names of the published checkpoints, and the same arithmetic as the folded encoder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scgpt_ray.atlas.anndata_file import AnnDataCells
from scgpt_ray.atlas.plan import cut
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Architecture, read_checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.network.weights import encoder_shapes
from scgpt_ray.schema import BIN, EMBEDDING, GENE, matrix, ragged
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.training.network import ReverseGradient, ScGPT

CPU = torch.device("cpu")
ARCHITECTURE = Architecture(16, 2, 24, 3, -2, 40)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_the_encoder_has_the_published_names():
    network = ScGPT(ARCHITECTURE, dropout=0.2)
    heads = ("decoder.", "mvc_decoder.", "flag_encoder.")
    assert {name: shape for name, shape in shapes(network).items() if not name.startswith(heads)} == encoder_shapes(
        40, 16, 24, 3
    )


@pytest.mark.golden
def test_the_heads_have_the_published_names(shared):
    """The cell-type head of scGPT_CP and those of the generative objectives, name by name and shape by shape."""
    checkpoint = read_checkpoint(shared / "golden" / "cp_classes" / "checkpoint")
    n_labels = len(checkpoint.heads["cls_decoder.out_layer.bias"])
    network = ScGPT(checkpoint.architecture, dropout=0.2, n_labels=n_labels)
    encoder = checkpoint.architecture.shapes()
    heads = {name: shape for name, shape in shapes(network).items() if name not in encoder}
    published = {name: tuple(tensor.shape) for name, tensor in checkpoint.heads.items()}
    assert n_labels == 177
    assert heads == published


@pytest.mark.golden
@pytest.mark.parametrize("name", ["flash_names", "torch_names", "cp_classes"])
def test_the_cells_row_is_the_embedding(shared, name):
    """Twin of the folded network that embeds, and through it of upstream's."""
    import anndata

    folder = shared / "golden" / name
    checkpoint = read_checkpoint(folder / "checkpoint")
    adata = anndata.read_h5ad(folder / "cells_distinct.h5ad")
    tokens_of = np.array([checkpoint.vocabulary.tokens.get(gene, -1) for gene in adata.var["feature_name"]], np.int32)
    memory = AnnDataCells.of(adata, None)
    [partition] = cut(memory.joinids(), adata.n_obs)
    tokens = tokenize(next(memory.read(partition, tokens_of)), checkpoint.vocabulary, TokenRules())
    network = ScGPT(checkpoint.architecture, dropout=0.2, n_labels=3)
    network.load_state_dict({**network.state_dict(), **checkpoint.tensors})
    network.eval()
    offsets, gene = ragged(tokens[GENE])
    _, bins = ragged(tokens[BIN])
    value_T = torch.from_numpy(bins.astype(np.float32))
    value_T[offsets[:-1]] = float(checkpoint.architecture.pad_value)
    with torch.no_grad():
        x_TD, _ = network(torch.from_numpy(gene.astype(np.int64)), value_T, Spans.of(offsets, CPU))
    found = F.normalize(x_TD[offsets[:-1]], dim=1).numpy()
    np.testing.assert_allclose(found, matrix(Embedder(checkpoint)(tokens)[EMBEDDING]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, np.load(folder / "cells_distinct.X_scGPT.npy"), rtol=0, atol=1e-5)


def test_dropout_is_drawn_in_training_alone():
    torch.manual_seed(0)
    network = ScGPT(ARCHITECTURE, dropout=0.5)
    tokens = torch.arange(7), torch.arange(7).float(), Spans.of(np.array([0, 3, 7]), CPU)
    assert not torch.equal(network(*tokens)[0], network(*tokens)[0])
    network.eval()
    assert torch.equal(network(*tokens)[0], network(*tokens)[0])


def test_values_beyond_the_largest_are_the_largest():
    """As upstream clamps them; bins never are."""
    network = ScGPT(ARCHITECTURE, dropout=0.0)
    rows = network.value_encoder(torch.tensor([512.0, 10_000.0]))
    assert torch.equal(rows[0], rows[1])


def test_the_cell_decoder_by_hand():
    decoder = ScGPT(ARCHITECTURE, dropout=0.0).mvc_decoder
    gene_MD, cell_MD = torch.randn(5, 16), torch.randn(5, 16)
    query = torch.sigmoid(gene_MD @ decoder.gene2query.weight.T + decoder.gene2query.bias) @ decoder.W.weight.T
    torch.testing.assert_close(decoder(gene_MD, cell_MD), torch.einsum("md,md->m", query, cell_MD))


def test_the_reversed_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(3, 4)
    same = ReverseGradient.apply(x)
    assert torch.equal(same, x)
    (same * weight).sum().backward()
    assert torch.equal(x.grad, -weight)
