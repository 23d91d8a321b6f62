
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audit', '0002_log'),
    ]

    operations = [
        migrations.CreateModel(
            name='AnchorState',
            fields=[
                ('name', models.CharField(help_text='kind and place, without credentials', max_length=255, primary_key=True, serialize=False)),
                ('kind', models.CharField(max_length=20)),
                ('log', models.SmallIntegerField(null=True)),
                ('size', models.BigIntegerField(help_text='size of the newest checkpoint that it took', null=True)),
                ('reached_at', models.DateTimeField(help_text='when it took that one', null=True)),
                ('tried_at', models.DateTimeField(null=True)),
                ('failures', models.IntegerField(default=0, help_text='in a row')),
                ('error', models.TextField(default='')),
            ],
            options={
                'verbose_name': 'anchor',
            },
        ),
        migrations.CreateModel(
            name='Log',
            fields=[
                ('number', models.SmallIntegerField(primary_key=True, serialize=False)),
                ('origin', models.CharField(help_text="C2SP tlog-checkpoint: the log's name for ever", max_length=255, unique=True)),
                ('start', models.BigIntegerField(help_text='index of its first record')),
                ('opened_at', models.DateTimeField()),
                ('closed_at', models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Alert',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(max_length=40)),
                ('about', models.CharField(default='', max_length=255)),
                ('words', models.TextField()),
                ('raised_at', models.DateTimeField()),
                ('seen_at', models.DateTimeField()),
                ('cleared_at', models.DateTimeField(null=True)),
            ],
            options={
                'constraints': [models.UniqueConstraint(condition=models.Q(('cleared_at', None)), fields=('kind', 'about'), name='alert_open_once')],
            },
        ),
        migrations.CreateModel(
            name='Anchoring',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('anchor', models.CharField(max_length=255)),
                ('log', models.SmallIntegerField()),
                ('size', models.BigIntegerField()),
                ('at', models.DateTimeField()),
                ('cosignature', models.TextField(default='', help_text="a witness's signature lines (C2SP tlog-cosignature)")),
            ],
            options={
                'indexes': [models.Index(fields=['log', 'size'], name='anchoring_by_size')],
                'constraints': [models.UniqueConstraint(fields=('anchor', 'log', 'size'), name='anchored_once')],
            },
        ),
        migrations.CreateModel(
            name='Checkpoint',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('log', models.SmallIntegerField()),
                ('size', models.BigIntegerField(help_text='leaves in the tree')),
                ('root', models.BinaryField(help_text='Merkle root, 32 bytes')),
                ('note', models.TextField(help_text='the note as the sealer signed it, without cosignatures')),
                ('key_id', models.CharField(max_length=64)),
                ('at', models.DateTimeField()),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('log', 'size'), name='checkpoint_once')],
            },
        ),
        migrations.CreateModel(
            name='SealerStatus',
            fields=[
                ('id', models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('state', models.CharField(help_text='active, halted or closed', max_length=10)),
                ('words', models.TextField(default='')),
                ('host', models.CharField(default='', max_length=255)),
                ('seen_at', models.DateTimeField()),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='sealer_status_single')],
            },
        ),
        migrations.CreateModel(
            name='Tile',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('log', models.SmallIntegerField()),
                ('level', models.SmallIntegerField()),
                ('index', models.BigIntegerField()),
                ('hashes', models.BinaryField(help_text='1 to 256 hashes of 32 bytes')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('log', 'level', 'index'), name='tile_once')],
            },
        ),
        migrations.CreateModel(
            name='Verification',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(help_text='full, since, or sample', max_length=10)),
                ('began_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField(null=True)),
                ('records', models.BigIntegerField(default=0)),
                ('size', models.BigIntegerField(default=0, help_text='sealed size that was looked at')),
                ('findings', models.JSONField(default=list, help_text='code, index and message of each, at most 100')),
                ('count', models.IntegerField(default=0, help_text='of findings')),
            ],
            options={
                'indexes': [models.Index(fields=['-began_at'], name='verification_newest')],
            },
        ),
    ]
